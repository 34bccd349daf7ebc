//! One line of an export, checked against itself.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::export::{HeaderView, Line};
use crate::{Hash, Stored, record_hash};

/// What a coherent line says.
pub(super) struct Coherent {
    pub previous: Hash,
    pub hash: Hash,
    pub opened: bool,
}

pub(super) enum Unfit {
    Bad(&'static str),
    UnknownForm(&'static str),
}

/// Checks a line against itself: the readable part must say what the record's bytes say, the
/// hash must be theirs, the opened content must be what was sealed.
pub(super) fn check_record(line: &mut Line) -> Result<Coherent, Unfit> {
    let (Some(hash), Some(previous)) = (hash_of(&line.hash), hash_of(&line.previous)) else {
        return Err(Unfit::Bad("a hash is not one"));
    };
    if line.withheld {
        if line.header.is_some() || line.record.is_some() || line.plaintext.is_some() {
            return Err(Unfit::Bad("it is withheld and shown"));
        }
        return Ok(Coherent {
            previous,
            hash,
            opened: false,
        });
    }
    let (Some(record), Some(view)) = (&line.record, &line.header) else {
        return Err(Unfit::Bad("the record or its readable part is missing"));
    };
    let Ok(stored) = STANDARD.decode(record) else {
        return Err(Unfit::Bad("the record is not base64"));
    };
    if record_hash(&stored) != hash {
        return Err(Unfit::Bad("the hash is not that of the record"));
    }
    let Ok(parsed) = Stored::parse(&stored) else {
        return Err(Unfit::UnknownForm(
            "the record is not of a format that this program knows",
        ));
    };
    let header = &parsed.header;
    if (header.shard, header.number, header.previous) != (line.shard, line.number, previous)
        || HeaderView::from(header) != *view
    {
        return Err(Unfit::Bad("the readable part is not what the record says"));
    }
    let content_digest = header.content_digest;
    let opened = line.plaintext.is_some();
    if let Some(plaintext) = line.plaintext.take()
        && plaintext.digest() != Some(content_digest)
    {
        return Err(Unfit::Bad("the opened content is not what was sealed"));
    }
    Ok(Coherent {
        previous,
        hash,
        opened,
    })
}

fn hash_of(text: &str) -> Option<Hash> {
    hex::decode(text).ok()?.try_into().ok()
}
