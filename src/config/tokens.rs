//! `http.tokens`: who may come in over HTTP, and what each may do.
//!
//! ```text
//!   file = "…"  ┐
//!   env = "…"   ├─▶ the token ─▶ SHA-256 ─▶ kept, compared at each request
//!   sha256 = "…" ──────────────────┘
//! ```
//! The token itself is forgotten as soon as it is hashed, so nothing that prints a configuration, or dumps the memory of a service, has it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use openssl::sha::sha256;

use super::connection::is_plain;
use super::raw::{Item, Table};
use super::read_bounded;
use crate::core::access::{Role, TokenHash};

/// A request's token is compared with every one, so their number is a cost of each request: about 20 µs of it, with so many.
const MAX_TOKENS: usize = 256;

/// A token has at least so many bytes. 16 random letters and digits have 95 bits: at a thousand tries a second, none of 256 such tokens is found in
/// the age of the universe. What is shorter was made up by somebody, and can be guessed. `openssl rand -base64 32` makes 44.
const MIN_TOKEN: usize = 16;

/// And at most so many: it has to fit the head of a request with everything else (16 KiB).
const MAX_TOKEN: usize = 1_024;

/// A token file has that and perhaps a comment; it is not a key store.
const MAX_FILE: u64 = 16 << 10;

/// The name is part of every delivery that it posted, and stands in the audit.
const MAX_NAME: usize = 64;

/// So many tenants of one token.
const MAX_TENANTS: usize = 1_000;

/// A tenant's name, in bytes.
const MAX_TENANT: usize = 256;

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenConfig {
    /// Its name, which is shown in the history and in the audit.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// For these tenants only; none: for all.
    pub tenants: Option<BTreeSet<String>>,
    /// What is left of the token itself.
    pub hash: TokenHash,
}

/// The tokens in a list, and what is right with them but probably not meant. What is wrong is noted.
pub(super) fn all(item: Item<'_>, environment: &dyn Fn(&str) -> Option<String>, notes: &mut Vec<String>) -> Vec<TokenConfig> {
    let expected = "a list such as [{ name = \"ci\", role = \"ingest\", file = \"/etc/tidings/ci.token\" }]";
    if item.read(expected, |item| item.is_list().then_some(())).is_none() {
        return Vec::new();
    }
    let (key, count) = (item.key.clone(), item.count());
    if !(1..=MAX_TOKENS).contains(&count) {
        item.mistake(format_args!("expected 1 to {MAX_TOKENS} tokens, found {count}; leave `{key}` out for none"));
    }
    let mut tokens: Vec<TokenConfig> = Vec::new();
    for (place, entry) in item.entries().into_iter().enumerate() {
        let Some(mut table) = entry.table() else { continue };
        let token = token(&mut table, environment, notes);
        let (name, hash) = (token.name.as_ref(), token.hash.as_ref());
        if let Some(other) = tokens.iter().position(|known| name == Some(&known.name)) {
            table.mistake(
                "name",
                None,
                format_args!("`{key}[{other}]` and `{key}[{place}]` have one name: the history could not tell them apart"),
            );
        }
        if let Some(other) = tokens.iter().find(|known| hash == Some(&known.hash)) {
            let message = format_args!("is the token of `{}`, too: which of the two would it be? Make another", other.name);
            table.mistake(token.source.unwrap_or("file"), None, message);
        }
        table.finish();
        if let (Some(name), Some(role), Some(hash)) = (token.name, token.role, token.hash) {
            tokens.push(TokenConfig { name, role, tenants: token.tenants, hash });
        }
    }
    tokens
}

/// As much of one as is right.
struct Read {
    name: Option<String>,
    role: Option<Role>,
    tenants: Option<BTreeSet<String>>,
    hash: Option<TokenHash>,
    /// The key that the hash is from.
    source: Option<&'static str>,
}

fn token(table: &mut Table<'_>, environment: &dyn Fn(&str) -> Option<String>, notes: &mut Vec<String>) -> Read {
    let name = required(table, "name", "is required: it stands in the history and in the audit").and_then(|item| {
        let expected = format!("a name of 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`");
        item.read(expected, |item| item.as_text().filter(|text| is_plain(text, MAX_NAME)).map(str::to_owned))
    });
    let roles = "\"ingest\" (posts reports), \"read\" (reads everything) or \"admin\" (both, and decides)";
    let role = required(table, "role", &format!("is required: {roles}"))
        .and_then(|item| item.read(roles, |item| item.as_text().and_then(Role::by_name)));
    let tenants = table.take("tenants").map(tenants);
    let [file, env, sha256] = ["file", "env", "sha256"].map(|key| table.take(key));
    if [&file, &env, &sha256].into_iter().flatten().count() > 1 {
        table.mistake("file", None, "the token is given more than once: one of `file`, `env` and `sha256`");
        return Read { name, role, tenants, hash: None, source: None };
    }
    let label = name.as_deref().unwrap_or("?");
    let (hash, source) = match (file, env, sha256) {
        (Some(item), _, _) => (in_file(&item, label, notes), Some("file")),
        (_, Some(item), _) => (in_environment(&item, environment), Some("env")),
        (_, _, Some(item)) => (as_hash(&item), Some("sha256")),
        _ => {
            table.missing(
                "file",
                "is required: the file that the token is in; or `env`, or `sha256`. `openssl rand -base64 32` makes a token",
            );
            (None, None)
        }
    };
    Read { name, role, tenants, hash, source }
}

fn required<'f>(table: &mut Table<'f>, key: &'static str, message: &str) -> Option<Item<'f>> {
    let item = table.take(key);
    if item.is_none() {
        table.missing(key, message);
    }
    item
}

fn tenants(item: Item<'_>) -> BTreeSet<String> {
    let count = item.count();
    if !item.is_list() || count == 0 || count > MAX_TENANTS {
        item.mistake(format_args!("expected a list of 1 to {MAX_TENANTS} tenants; leave it out for all of them"));
        return BTreeSet::new();
    }
    let name = |entry: Item<'_>| {
        entry.read("the name of a tenant", |entry| entry.as_text().filter(|text| text.len() <= MAX_TENANT).map(str::to_owned))
    };
    item.entries().into_iter().filter_map(name).collect()
}

/// The first line of the file, without what blanks there are around it.
fn in_file(item: &Item<'_>, label: &str, notes: &mut Vec<String>) -> Option<TokenHash> {
    let path = item.text()?;
    let text = read_bounded(Path::new(&path), MAX_FILE).map_err(|reason| item.mistake(format_args!("{path} {reason}"))).ok()?;
    let mode = std::fs::metadata(&path).map(|metadata| metadata.permissions().mode()).unwrap_or_default();
    if mode & 0o007 != 0 {
        notes.push(format!("token {label}: everybody on this machine may read or write {path}; `chmod 640` it, with the service's group"));
    }
    hashed(item, text.lines().next().unwrap_or_default().trim(), &format!("the first line of {path}"))
}

fn in_environment(item: &Item<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<TokenHash> {
    let variable = item.text()?;
    match environment(&variable) {
        Some(text) => hashed(item, text.trim(), &format!("the environment variable `{variable}`")),
        None => {
            item.mistake(format_args!("the environment variable `{variable}` is not set"));
            None
        }
    }
}

/// No message quotes the value: it may be the token itself, by mistake.
fn as_hash(item: &Item<'_>) -> Option<TokenHash> {
    let hash = item.as_text().and_then(TokenHash::from_hex);
    if hash.is_none() {
        item.mistake("expected the SHA-256 of the token in 64 hexadecimal digits, as `printf %s TOKEN | sha256sum` prints it");
    }
    hash
}

fn hashed(item: &Item<'_>, token: &str, place: &str) -> Option<TokenHash> {
    let message = match token.len() {
        0 => format!("{place} is empty; `openssl rand -base64 32` makes a token"),
        length if length < MIN_TOKEN => {
            format!(
                "{place} has {length} bytes, and a token has at least {MIN_TOKEN}, or it could be guessed; `openssl rand -base64 32` makes one"
            )
        }
        length if length > MAX_TOKEN => format!("{place} has {length} bytes, and a token has at most {MAX_TOKEN}"),
        _ if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            format!("{place} has other characters than visible ASCII, which no header can carry; `openssl rand -base64 32` makes a token")
        }
        _ => return Some(TokenHash::new(sha256(token.as_bytes()))),
    };
    item.mistake(message);
    None
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{HttpConfig, from_str_with};
    use super::*;

    const TOKEN: &str = "Hq1vSrYtUoQ6mZ3cXw9e";

    fn load(tokens: &str) -> Result<HttpConfig, String> {
        let environment = |name: &str| (name == "CI_TOKEN").then(|| format!(" {TOKEN}\n"));
        from_str_with(&format!("[http]\n{tokens}\n"), "t", &environment).map(|config| config.http).map_err(|errors| errors.to_string())
    }

    fn mistake(tokens: &str) -> String {
        let errors = load(tokens).expect_err(tokens);
        assert_eq!(errors.lines().count(), 1, "{errors}");
        errors
    }

    #[test]
    fn a_token_comes_from_a_file_the_environment_or_as_its_hash_and_only_the_hash_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ci.token");
        fs::write(&file, format!("  {TOKEN} \nmade by somebody\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let hash = TokenHash::new(sha256(TOKEN.as_bytes()));
        let hexadecimal: String = hash.bytes().iter().map(|byte| format!("{byte:02X}")).collect();
        for source in [format!("file = '{}'", file.display()), "env = 'CI_TOKEN'".into(), format!("sha256 = '{hexadecimal}'")] {
            let http = load(&format!("tokens = [{{ name = 'ci', role = 'read', tenants = ['b', 'a'], {source} }}]")).unwrap();
            let tenants = Some(BTreeSet::from(["a".to_owned(), "b".to_owned()]));
            assert_eq!(http.tokens, [TokenConfig { name: "ci".into(), role: Role::Read, tenants, hash }]);
            assert!(!format!("{http:?}").contains(TOKEN) && !format!("{http:?}").to_uppercase().contains(&hexadecimal), "{http:?}");
            assert_eq!(http.notes, [""; 0]);
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let http = load(&format!("tokens = [{{ name = 'ci', role = 'read', file = '{}' }}]", file.display())).unwrap();
        assert!(http.notes[0].starts_with("token ci: everybody on this machine may read"), "{:?}", http.notes);
    }

    #[test]
    fn what_is_no_token_is_named_and_never_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ci.token");
        let long = "x".repeat(MAX_TOKEN + 1);
        for (content, reason) in [
            ("", "is empty"),
            ("\n\nhunter2hunter2hunter2", "is empty"),
            ("hunter2", "has 7 bytes, and a token has at least 16"),
            ("hunter2 hunter2 hunter2", "other characters than visible ASCII"),
            ("hunter2hunter2hünter2", "other characters than visible ASCII"),
            (long.as_str(), "and a token has at most 1024"),
        ] {
            fs::write(&file, content).unwrap();
            let found = mistake(&format!("tokens = [{{ name = 'ci', role = 'ingest', file = '{}' }}]", file.display()));
            assert!(found.starts_with("t:2: http.tokens[0].file: the first line of") && found.contains(reason), "{found}");
            assert!(!found.contains("hunter2"), "{found}");
        }
        let gone = mistake("tokens = [{ name = 'ci', role = 'ingest', file = '/nowhere/ci' }]");
        assert!(gone.starts_with("t:2: http.tokens[0].file: /nowhere/ci can't be read"), "{gone}");
        let unset = mistake("tokens = [{ name = 'ci', role = 'ingest', env = 'OTHER' }]");
        assert_eq!(unset, "t:2: http.tokens[0].env: the environment variable `OTHER` is not set");
        let secret = mistake("tokens = [{ name = 'ci', role = 'ingest', sha256 = 'hunter2hunter2hunter2' }]");
        assert!(secret.contains("http.tokens[0].sha256: expected the SHA-256") && !secret.contains("hunter2"), "{secret}");
    }

    #[test]
    fn each_key_of_a_token_is_checked() {
        let env = "env = 'CI_TOKEN'";
        for (token, reason) in [
            (format!("role = 'ingest', {env}"), "tokens[0].name: is required"),
            (format!("name = 'a b', role = 'ingest', {env}"), "tokens[0].name: expected a name of 1 to 64"),
            (format!("name = 'ci', {env}"), "tokens[0].role: is required"),
            (format!("name = 'ci', role = 'root', {env}"), "tokens[0].role: expected \"ingest\""),
            ("name = 'ci', role = 'ingest'".into(), "tokens[0].file: is required"),
            (format!("name = 'ci', role = 'ingest', file = 'x', {env}"), "tokens[0].file: the token is given more than once"),
            (format!("name = 'ci', role = 'ingest', tenants = [], {env}"), "tokens[0].tenants: expected a list of 1 to 1000"),
            (format!("name = 'ci', role = 'ingest', tenants = 'a', {env}"), "tokens[0].tenants: expected a list of 1 to 1000"),
            (format!("name = 'ci', role = 'ingest', tenants = [1], {env}"), "tokens[0].tenants[0]: expected the name of a tenant"),
            (format!("name = 'ci', role = 'ingest', rolle = 1, {env}"), "tokens[0].rolle: unknown key; did you mean `role`?"),
        ] {
            let found = mistake(&format!("tokens = [{{ {token} }}]"));
            assert!(found.contains(reason), "{found}");
        }
        assert!(mistake("tokens = 'x'").contains("http.tokens: expected a list such as"));
        assert!(mistake("tokens = []").contains("http.tokens: expected 1 to 256 tokens, found 0"));
    }

    #[test]
    fn two_tokens_have_two_names_and_are_two_tokens() {
        let hash = |digit: &str| format!("sha256 = '{}'", digit.repeat(64));
        let pair = |first: &str, second: &str, other: &str| {
            format!("tokens = [{{ name = 'ci', role = 'ingest', {first} }}, {{ name = '{second}', role = 'read', {other} }}]")
        };
        assert_eq!(load(&pair(&hash("a"), "ops", &hash("b"))).unwrap().tokens.len(), 2);
        assert!(
            mistake(&pair(&hash("a"), "ci", &hash("b"))).contains("tokens[1].name: `http.tokens[0]` and `http.tokens[1]` have one name")
        );
        assert!(mistake(&pair(&hash("a"), "ops", &hash("A"))).contains("tokens[1].sha256: is the token of `ci`, too"));
    }
}
