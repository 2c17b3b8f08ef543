//! Who asks, as far as it is known, and what that allows.
//!
//! A request that has passed the door carries a [`Caller`] among its extensions. A route takes it from there, and never looks at a token itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::error::{ApiError, invalid};
pub use crate::core::access::Role;

/// The name of whoever decides may have so many bytes.
const LONGEST_NAME: usize = 64;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name of the token; none where no token is needed.
    name: Option<Arc<str>>,
    role: Role,
    /// The only tenants that may be posted for and looked at; none for all.
    tenants: Option<Arc<BTreeSet<String>>>,
}

impl Caller {
    /// Whoever reaches a service that asks for no tokens: everybody on this machine, who may do everything.
    pub fn local() -> Self {
        Caller { name: None, role: Role::Admin, tenants: None }
    }

    /// Who has shown the token of this name.
    pub fn of_token(name: impl Into<Arc<str>>, role: Role, tenants: Option<BTreeSet<String>>) -> Self {
        Caller { name: Some(name.into()), role, tenants: tenants.map(Arc::new) }
    }

    /// Who has shown nothing, where nothing is asked for: whatever belongs to a tenant is as if it were not there.
    pub fn nobody() -> Self {
        Caller { name: None, role: Role::Read, tenants: Some(Arc::default()) }
    }

    /// The name of the token, if one was shown.
    pub fn token(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What the caller may do.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The only tenants that the caller may see; none for all.
    pub fn tenants(&self) -> Option<&Arc<BTreeSet<String>>> {
        self.tenants.as_ref()
    }

    /// Whether the caller may post for, and see, this tenant.
    pub fn may_see(&self, tenant: &str) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }

    /// Who decides, for the history: the name that was given, and the token that answers for it.
    ///
    /// # Errors
    /// 422 `invalid_query` for a name that is none, and where nobody is named though no token was shown.
    pub fn decides(&self, by: Option<&str>) -> Result<String, ApiError> {
        let is_name = |by: &&str| !by.trim().is_empty() && by.len() <= LONGEST_NAME && !by.chars().any(char::is_control);
        match (by, &self.name) {
            (Some(by), _) if !is_name(&by) => Err(no_name()),
            (None, None) => Err(no_name()),
            (None, Some(token)) => Ok(token.to_string()),
            (Some(by), Some(token)) if by == &**token => Ok(by.to_owned()),
            (Some(by), Some(token)) => Ok(format!("{by} (token {token})")),
            (Some(by), None) => Ok(by.to_owned()),
        }
    }
}

fn no_name() -> ApiError {
    invalid("by", format!("expected a name of 1 to {LONGEST_NAME} bytes, which the history will show"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_decides_is_named_and_the_token_answers_for_it() {
        let token = Caller::of_token("ops", Role::Admin, None);
        assert_eq!(token.decides(None), Ok("ops".into()));
        assert_eq!(token.decides(Some("ops")), Ok("ops".into()));
        assert_eq!(token.decides(Some("anna")), Ok("anna (token ops)".into()));
        assert_eq!(Caller::local().decides(Some("anna")), Ok("anna".into()));
        for nobody in [None, Some(""), Some(" "), Some("a\nb")] {
            assert!(Caller::local().decides(nobody).is_err(), "{nobody:?}");
        }
    }

    #[test]
    fn a_token_with_tenants_sees_no_others() {
        let some = Caller::of_token("ci", Role::Read, Some(BTreeSet::from(["one".to_owned()])));
        assert!(some.may_see("one") && !some.may_see("two") && !some.may_see(""));
        assert!(Caller::local().may_see("two"));
    }
}
