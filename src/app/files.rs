//! The files that a connection's TLS is made of: a renewed certificate stands under its old name, and is another configuration all the same.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3Default;

use crate::config::{ConnectionConfig, TlsConfig};
use crate::core::types::ConnectionName;

/// So much of a file counts, in bytes: certificates have a few KiB, bundles of authorities some hundred.
const MOST: u64 = 4 << 20;

/// So many files of a folder of authorities count.
const MOST_FILES: usize = 1_024;

/// What the files of each connection hold, as a hash. Blocks on the disk.
pub(super) fn fingerprints(connections: &[ConnectionConfig]) -> BTreeMap<ConnectionName, u64> {
    let of_one = |connection: &ConnectionConfig| Some((connection.name.clone(), fingerprint(connection.tls.as_ref()?)));
    connections.iter().filter_map(of_one).collect()
}

fn fingerprint(tls: &TlsConfig) -> u64 {
    let mut hash = Xxh3Default::new();
    let identity = tls.identity.iter().flat_map(|identity| [&identity.certfile, &identity.keyfile]);
    for path in identity.chain([&tls.ca_certs]) {
        add(path, &mut hash);
    }
    hash.digest()
}

fn add(path: &Path, hash: &mut Xxh3Default) {
    if let Ok(entries) = fs::read_dir(path) {
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        files.sort();
        for file in files.iter().take(MOST_FILES) {
            hash.update(file.as_os_str().as_encoded_bytes());
            add(file, hash);
        }
        return;
    }
    let mut content = Vec::new();
    // One that can't be read is a mistake, which has been found before; here it is one that holds nothing.
    let _ = fs::File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut content));
    hash.update(&(content.len() as u64).to_le_bytes());
    hash.update(&content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_another_content_is_noticed_also_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (file, inside) = (folder.path().join("ca.pem"), folder.path().join("ca/one.pem"));
        fs::create_dir(folder.path().join("ca")).unwrap();
        for (path, ca_certs) in [(&file, file.clone()), (&inside, folder.path().join("ca"))] {
            fs::write(path, "before").unwrap();
            let connection =
                ConnectionConfig { tls: Some(TlsConfig { ca_certs, identity: None, ciphers: None }), ..ConnectionConfig::named("mqtt") };
            let connections = [connection, ConnectionConfig::named("clear")];
            let before = fingerprints(&connections);
            assert_eq!((before.len(), &before), (1, &fingerprints(&connections)));
            fs::write(path, "renewed").unwrap();
            assert_ne!(before, fingerprints(&connections));
        }
    }
}
