//! SCRAM as a client does it (RFC 5802), for tests: also wrongly, on purpose, through its fields.

use std::num::NonZeroU32;

use anyhow::{Context, Result, bail};
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as B64;

/// One exchange.
pub struct Scram {
    sha256: bool,
    gs2: String,
    binding: Vec<u8>,
    first_bare: String,
    password: String,
    server_signature: Vec<u8>,
}

impl Scram {
    /// `binding`: the channel-binding type's name and data, for -PLUS.
    pub fn new(
        sha256: bool,
        user: &str,
        password: &str,
        nonce: &str,
        binding: Option<(&str, &[u8])>,
    ) -> Self {
        let escaped = user.replace('=', "=3D").replace(',', "=2C");
        Self {
            sha256,
            gs2: binding.map_or("n,,".into(), |(name, _)| format!("p={name},,")),
            binding: binding.map(|(_, data)| data.to_vec()).unwrap_or_default(),
            first_bare: format!("n={escaped},r={nonce}"),
            password: password.into(),
            server_signature: Vec::new(),
        }
    }

    /// client-first-message.
    pub fn first(&self) -> String {
        format!("{}{}", self.gs2, self.first_bare)
    }

    /// client-final-message for what the server said.
    pub fn last(&mut self, server_first: &str) -> Result<String> {
        let field = |name: &str| {
            server_first
                .split(',')
                .find_map(|f| f.strip_prefix(name))
                .context("field missing")
        };
        let nonce = field("r=")?;
        let salt = B64.decode(field("s=")?)?;
        let iterations: NonZeroU32 = field("i=")?.parse()?;
        let (hash, mac, sum, length) = if self.sha256 {
            (
                pbkdf2::PBKDF2_HMAC_SHA256,
                hmac::HMAC_SHA256,
                &digest::SHA256,
                32,
            )
        } else {
            (
                pbkdf2::PBKDF2_HMAC_SHA1,
                hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
                &digest::SHA1_FOR_LEGACY_USE_ONLY,
                20,
            )
        };
        let mut salted = vec![0u8; length];
        pbkdf2::derive(
            hash,
            iterations,
            &salt,
            self.password.as_bytes(),
            &mut salted,
        );
        let keyed = |key: &[u8], data: &[u8]| {
            hmac::sign(&hmac::Key::new(mac, key), data)
                .as_ref()
                .to_vec()
        };
        let client_key = keyed(&salted, b"Client Key");
        let stored = digest::digest(sum, &client_key);
        let mut cbind = self.gs2.as_bytes().to_vec();
        cbind.extend_from_slice(&self.binding);
        let without_proof = format!("c={},r={nonce}", B64.encode(cbind));
        let auth = format!("{},{server_first},{without_proof}", self.first_bare);
        let signature = keyed(stored.as_ref(), auth.as_bytes());
        let proof: Vec<u8> = client_key
            .iter()
            .zip(&signature)
            .map(|(a, b)| a ^ b)
            .collect();
        self.server_signature = keyed(&keyed(&salted, b"Server Key"), auth.as_bytes());
        Ok(format!("{without_proof},p={}", B64.encode(proof)))
    }

    /// Checks the server's signature.
    pub fn verify(&self, server_final: &str) -> Result<()> {
        let given = server_final.strip_prefix("v=").context("no verifier")?;
        if B64.decode(given)? != self.server_signature {
            bail!("the server does not know the password");
        }
        Ok(())
    }
}
