//! A certificate authority of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::symm::Cipher;
use openssl::x509::extension::{AuthorityKeyIdentifier, BasicConstraints, SubjectAlternativeName, SubjectKeyIdentifier};
use openssl::x509::{X509, X509Builder, X509Name, X509NameBuilder};

const DAY_S: i64 = 86_400;

/// Who issues.
pub struct Authority(Issued);

/// What is to be issued.
pub struct Wanted<'a> {
    /// The common name.
    pub name: &'a str,
    /// Host names and addresses.
    pub hosts: &'a [&'a str],
    /// Days from today: the first and the last.
    pub days: (i64, i64),
}

/// A certificate with its key.
pub struct Issued {
    pub certificate: X509,
    pub key: PKey<Private>,
}

/// For a broker on this machine, from yesterday on.
pub const LOCAL: Wanted<'static> = Wanted { name: "broker", hosts: &["localhost", "127.0.0.1", "::1"], days: (-1, 30) };

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = elliptic_key();
        let name = common_name(name);
        let mut builder = begin(&name, &name, &key, (-2, 60));
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        let identifier = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None)).unwrap();
        builder.append_extension(identifier).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        Authority(Issued { certificate: builder.build(), key })
    }

    pub fn issue(&self, wanted: &Wanted<'_>) -> Issued {
        self.issue_for(wanted, elliptic_key())
    }

    /// With an RSA key, which some cipher suites are for.
    pub fn issue_rsa(&self, wanted: &Wanted<'_>) -> Issued {
        self.issue_for(wanted, PKey::from_rsa(Rsa::generate(2_048).unwrap()).unwrap())
    }

    fn issue_for(&self, wanted: &Wanted<'_>, key: PKey<Private>) -> Issued {
        let Authority(Issued { certificate, key: own }) = self;
        let mut builder = begin(&common_name(wanted.name), certificate.subject_name(), &key, wanted.days);
        if !wanted.hosts.is_empty() {
            let mut names = SubjectAlternativeName::new();
            for host in wanted.hosts {
                let is_address = host.parse::<std::net::IpAddr>().is_ok();
                if is_address {
                    names.ip(host)
                } else {
                    names.dns(host)
                };
            }
            let names = names.build(&builder.x509v3_context(Some(certificate), None)).unwrap();
            builder.append_extension(names).unwrap();
        }
        let issuer = AuthorityKeyIdentifier::new().keyid(true).build(&builder.x509v3_context(Some(certificate), None)).unwrap();
        builder.append_extension(issuer).unwrap();
        builder.sign(own, MessageDigest::sha256()).unwrap();
        Issued { certificate: builder.build(), key }
    }

    /// Its certificate as a PEM file.
    pub fn write(&self, file: &Path) -> PathBuf {
        fs::write(file, self.0.certificate.to_pem().unwrap()).unwrap();
        file.to_owned()
    }
}

impl Issued {
    /// Certificate and key as PEM files with this stem.
    pub fn write(&self, folder: &Path, stem: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{stem}.pem")), folder.join(format!("{stem}.key")));
        fs::write(&certificate, self.certificate.to_pem().unwrap()).unwrap();
        fs::write(&key, self.key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        (certificate, key)
    }

    /// The key behind a passphrase.
    pub fn write_encrypted(&self, file: &Path) -> PathBuf {
        fs::write(file, self.key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), b"hush").unwrap()).unwrap();
        file.to_owned()
    }
}

fn begin(subject: &X509Name, issuer: &openssl::x509::X509NameRef, key: &PKey<Private>, days: (i64, i64)) -> X509Builder {
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(120, MsbOption::MAYBE_ZERO, false).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(subject).unwrap();
    builder.set_issuer_name(issuer).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&day(days.0)).unwrap();
    builder.set_not_after(&day(days.1)).unwrap();
    builder
}

fn day(from_today: i64) -> Asn1Time {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Asn1Time::from_unix(i64::try_from(now).unwrap() + from_today * DAY_S).unwrap()
}

fn common_name(name: &str) -> X509Name {
    let mut builder = X509NameBuilder::new().unwrap();
    builder.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    builder.build()
}

fn elliptic_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}
