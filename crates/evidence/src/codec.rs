//! The primitives of the record's format: big-endian numbers, fields behind their length. Reading
//! is strict, so that one record has exactly one encoding. It refuses to know any field.

use crate::EvidenceError;

/// Appends fields to a buffer.
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub fn array(&mut self, value: &[u8]) {
        self.0.extend_from_slice(value);
    }

    /// A count or the length of a short field.
    pub fn len16(&mut self, len: usize, field: &'static str) -> Result<(), EvidenceError> {
        self.u16(u16::try_from(len).map_err(|_| EvidenceError::TooLong(field))?);
        Ok(())
    }

    pub fn text(&mut self, value: &str, field: &'static str) -> Result<(), EvidenceError> {
        self.len16(value.len(), field)?;
        self.array(value.as_bytes());
        Ok(())
    }

    pub fn long(&mut self, value: &[u8], field: &'static str) -> Result<(), EvidenceError> {
        self.u32(u32::try_from(value.len()).map_err(|_| EvidenceError::TooLong(field))?);
        self.array(value);
        Ok(())
    }
}

/// Takes fields from the front of a slice.
pub struct Reader<'a>(&'a [u8]);

const SHORT: EvidenceError = EvidenceError::Malformed("it ends too early");

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], EvidenceError> {
        let (field, rest) = self.0.split_at_checked(len).ok_or(SHORT)?;
        self.0 = rest;
        Ok(field)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], EvidenceError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*field)
    }

    pub fn u8(&mut self) -> Result<u8, EvidenceError> {
        self.array().map(u8::from_be_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, EvidenceError> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, EvidenceError> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, EvidenceError> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, EvidenceError> {
        self.array().map(i64::from_be_bytes)
    }

    pub fn flag(&mut self) -> Result<bool, EvidenceError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(EvidenceError::Malformed("a flag is neither 0 nor 1")),
        }
    }

    pub fn text(&mut self) -> Result<&'a str, EvidenceError> {
        let len = usize::from(self.u16()?);
        utf8(self.bytes(len)?)
    }

    pub fn long(&mut self) -> Result<&'a [u8], EvidenceError> {
        let len = usize::try_from(self.u32()?).map_err(|_| SHORT)?;
        self.bytes(len)
    }

    /// Everything has been read.
    pub fn end(self) -> Result<(), EvidenceError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(EvidenceError::Malformed("bytes left over"))
        }
    }
}

pub fn utf8(bytes: &[u8]) -> Result<&str, EvidenceError> {
    std::str::from_utf8(bytes).map_err(|_| EvidenceError::Malformed("a text is not UTF-8"))
}
