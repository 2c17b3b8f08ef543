//! Who may come in over HTTP: the configuration's tokens and certificate, as the door asks for them.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{Config, HttpConfig, TokenConfig};
use crate::metrics::Metrics;
use crate::server::caller::Caller;
use crate::server::door::{Door, Rules, Token, codes};
use crate::server::tls::Acceptor;

/// What the door asks for.
pub(super) fn rules(http: &HttpConfig) -> Arc<Rules> {
    let token =
        |token: &TokenConfig| Token { hash: token.hash, caller: Caller::of_token(token.name.as_str(), token.role, token.tenants.clone()) };
    let tls = http.tls.clone().map(|tls| {
        let make = move || tls.acceptor().map_err(|(key, reason)| format!("http.{key}: {reason}"));
        Arc::new(Acceptor::new(Box::new(make)))
    });
    Arc::new(Rules { tokens: http.tokens.iter().map(token).collect(), open_metrics: http.open_metrics, rate: http.rate, tls })
}

/// The door with these rules, and what changes them.
pub(super) fn door(config: &Config, metrics: &Arc<Metrics>) -> (Door, watch::Sender<Arc<Rules>>) {
    for code in codes::ALL {
        // There from the start, so that the first one is seen in a rate.
        metrics.tidings_http_refused_total.with_label_values(&[code]);
    }
    let (rules, in_force) = watch::channel(rules(&config.http));
    let metrics = Arc::clone(metrics);
    (Door::new(in_force, Box::new(move |code| metrics.tidings_http_refused_total.with_label_values(&[code]).inc())), rules)
}

/// What is right with the configuration but probably not meant: said at each start and reload.
pub(super) fn warn(http: &HttpConfig) {
    for note in &http.notes {
        tracing::warn!("{note}");
    }
}

/// What differs between two lists of tokens, in words; nothing of what they are.
pub(super) fn differences(old: &[TokenConfig], new: &[TokenConfig]) -> Vec<String> {
    let find = |list: &'_ [TokenConfig], name: &str| list.iter().find(|token| token.name == name).cloned();
    let gone = old.iter().filter(|token| find(new, &token.name).is_none()).map(|token| format!("token {} removed", token.name));
    let others = new.iter().filter_map(|token| match find(old, &token.name) {
        None => Some(format!("token {} added ({})", token.name, token.role.name())),
        Some(before) if before == *token => None,
        Some(before) if before.role != token.role => {
            Some(format!("token {} changed from {} to {}", token.name, before.role.name(), token.role.name()))
        }
        Some(before) if before.tenants != token.tenants => Some(format!("token {} has other tenants", token.name)),
        Some(_) => Some(format!("token {} renewed", token.name)),
    });
    gone.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::access::{Role, TokenHash};

    #[test]
    fn what_became_of_tokens_is_said_by_their_names() {
        let token = |name: &str, role, hash| TokenConfig { name: name.into(), role, tenants: None, hash: TokenHash::new([hash; 32]) };
        let old = [token("a", Role::Read, 1), token("b", Role::Read, 2), token("c", Role::Read, 3), token("d", Role::Read, 4)];
        let new = [token("a", Role::Read, 1), token("b", Role::Read, 9), token("c", Role::Admin, 3), token("e", Role::Ingest, 5)];
        let expected = ["token d removed", "token b renewed", "token c changed from read to admin", "token e added (ingest)"];
        assert_eq!(differences(&old, &new), expected);
        assert_eq!(differences(&old, &old), [""; 0]);
    }
}
