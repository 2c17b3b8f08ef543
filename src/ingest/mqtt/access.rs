//! Who may publish, and under whose name.

use openssl::memcmp;
use openssl::sha::sha256;
use xxhash_rust::xxh3::Xxh3;

use std::net::IpAddr;

use crate::config::Secret;
use crate::core::listener::{Close, Connect, code};

/// A user, and the password.
pub type Login = (String, Secret);

/// Who is let in.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The user that everybody has to be; none: whoever comes is let in, or the certificate says who it is.
    pub login: Option<Login>,
    /// What Tidings' own client ids begin with: a connection with one of them leads in a circle.
    pub own_client_ids: Vec<String>,
}

/// Who a publisher is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The MQTT user, or the name in its certificate; empty when nobody had to say.
    pub user: String,
    /// To whom its sessions belong: user and certificate.
    pub key: String,
}

impl Access {
    /// Lets a publisher in, or says why not. `certified` is the name in its certificate, which TLS has proven.
    ///
    /// # Errors
    /// With [`code::NOT_AUTHORIZED`] or [`code::CLIENT_ID`].
    pub fn admit(&self, connect: &Connect, certified: Option<&str>) -> Result<Owner, Close> {
        if self.is_own(&connect.client_id) {
            let message =
                "this is Tidings itself: one of its connections leads back to its own listener; give that connection the broker's address";
            return Err(Close::new("own_client_id", code::CLIENT_ID, message));
        }
        let certified = certified.unwrap_or_default();
        let Some((user, password)) = &self.login else {
            return Ok(Owner { user: certified.to_owned(), key: certified.to_owned() });
        };
        let Some((given_user, given_password)) = &connect.login else {
            return Err(Close::new("not_authorized", code::NOT_AUTHORIZED, "it gave no user and password"));
        };
        // Both are always compared, so that the time taken says nothing about which one is wrong.
        let is_user = is_same(given_user, user);
        let is_password = is_same(given_password, password.expose());
        match is_user & is_password {
            true => Ok(Owner { user: user.clone(), key: format!("{}:{user}{certified}", user.len()) }),
            false => Err(Close::new("not_authorized", code::NOT_AUTHORIZED, "user or password is wrong")),
        }
    }

    /// Whether it is the client id of a lane of this very store: `<prefix>-<epoch>-<lane>`.
    fn is_own(&self, client_id: &str) -> bool {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_rest = |rest: &str| rest.split_once('-').is_some_and(|(epoch, lane)| is_number(epoch) && is_number(lane));
        self.own_client_ids
            .iter()
            .any(|own| client_id.strip_prefix(own.as_str()).and_then(|rest| rest.strip_prefix('-')).is_some_and(is_rest))
    }
}

/// Compares in a time that depends on neither.
fn is_same(given: &str, expected: &str) -> bool {
    // Hashes have the same length, whatever the texts have.
    memcmp::eq(&sha256(given.as_bytes()), &sha256(expected.as_bytes()))
}

/// What the publishes of a user from an address have in common.
pub fn scope(owner: &Owner, address: IpAddr) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&(owner.key.len() as u64).to_be_bytes());
    hash.update(owner.key.as_bytes());
    hash.update(address.to_canonical().to_string().as_bytes());
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::Protocol;

    fn connect(client_id: &str, login: Option<(&str, &str)>) -> Connect {
        Connect {
            protocol: Protocol::V311,
            client_id: client_id.to_owned(),
            clean: true,
            keepalive_s: 0,
            session_expiry_s: 0,
            maximum_packet_size: None,
            login: login.map(|(user, password)| (user.to_owned(), password.to_owned())),
            will: None,
            wants_authentication: false,
        }
    }

    fn guarded() -> Access {
        Access { login: Some(("ci".to_owned(), Secret::new("secret"))), own_client_ids: vec!["tidings-0123abcd".to_owned()] }
    }

    #[test]
    fn only_the_right_user_with_the_right_password_is_let_in() {
        let access = guarded();
        assert_eq!(access.admit(&connect("a", Some(("ci", "secret"))), None).unwrap().user, "ci");
        for login in [None, Some(("ci", "")), Some(("ci", "Secret")), Some(("", "secret")), Some(("c", "isecret"))] {
            let refused = access.admit(&connect("a", login), None).unwrap_err();
            assert_eq!((refused.code, refused.reason_code), ("not_authorized", 0x87), "{login:?}");
        }
    }

    #[test]
    fn a_certificate_says_who_it_is_and_another_one_is_somebody_else() {
        let access = Access::default();
        let [one, other] = ["zuul-1", "zuul-2"].map(|name| access.admit(&connect("a", Some(("x", "y"))), Some(name)).unwrap());
        assert_eq!(one.user, "zuul-1", "and not what it says without proof");
        assert_ne!(one.key, other.key);
        let guarded = guarded();
        let [one, other] = ["zuul-1", "zuul-2"].map(|name| guarded.admit(&connect("a", Some(("ci", "secret"))), Some(name)).unwrap());
        assert_eq!((one.user.as_str(), other.user.as_str()), ("ci", "ci"));
        assert_ne!(one.key, other.key);
    }

    #[test]
    fn a_lane_of_this_very_store_is_not_let_in() {
        let access = guarded();
        let code = |client_id: &str| access.admit(&connect(client_id, Some(("ci", "secret"))), None).map_err(|close| close.code);
        assert_eq!(code("tidings-0123abcd-0-3"), Err("own_client_id"));
        for other in ["tidings-0123abce-0-3", "tidings-0123abcd", "tidings-0123abcd-0-x", "tidings-0123abcd-0", "x-tidings-0123abcd-0-3"] {
            assert!(code(other).is_ok(), "{other}");
        }
    }
}
