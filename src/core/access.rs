//! What a token allows, and what is kept of it.

use std::fmt;

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Posts reports.
    Ingest,
    /// Reads everything, and changes nothing.
    Read,
    /// Posts, reads, and decides.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 3] = [Role::Ingest, Role::Read, Role::Admin];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Role::Ingest => "ingest",
            Role::Read => "read",
            Role::Admin => "admin",
        }
    }

    /// The role with this name.
    pub fn by_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether who has this role may do what needs the other one.
    pub fn may(self, needed: Role) -> bool {
        self == Role::Admin || self == needed
    }
}

/// The SHA-256 of a token: all that is kept of it. A token is long and random (see `config::tokens`), so nobody comes from the one to the other, and
/// salt or a slow hash, which passwords need, would only slow every request down.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// From the bytes of a SHA-256.
    pub fn new(sha256: [u8; 32]) -> TokenHash {
        TokenHash(sha256)
    }

    /// From 64 hexadecimal digits, in either case.
    pub fn from_hex(text: &str) -> Option<TokenHash> {
        let digits: Vec<u32> = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
        let bytes: Vec<u8> = digits.chunks_exact(2).filter_map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect();
        if digits.len() == 64 { bytes.try_into().ok().map(TokenHash) } else { None }
    }

    /// The bytes, for a comparison in constant time.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// It is no secret, but whoever has it can try tokens without asking the service.
impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_may_do_its_own_and_admin_everything() {
        for role in Role::ALL {
            for needed in Role::ALL {
                assert_eq!(role.may(needed), role == needed || role == Role::Admin, "{role:?} {needed:?}");
            }
            assert_eq!(Role::by_name(role.name()), Some(role));
        }
        assert_eq!(Role::by_name("Admin"), None);
    }

    #[test]
    fn a_hash_is_64_hexadecimal_digits_and_is_not_shown() {
        let hash = TokenHash::from_hex(&"0aF1".repeat(16)).unwrap();
        assert_eq!(hash.bytes()[..2], [0x0a, 0xf1]);
        assert_eq!(format!("{hash:?}"), "[hidden]");
        for wrong in ["", "0a", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(64), &"+1".repeat(32)] {
            assert_eq!(TokenHash::from_hex(wrong), None, "{wrong}");
        }
    }
}
