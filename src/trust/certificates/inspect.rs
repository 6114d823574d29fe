//! Everything that `sealane pki check` says.

use std::path::{Path, PathBuf};

use rustls::pki_types::UnixTime;

use super::check::{Layout, examine};
use super::finding::Finding;
use super::{PeerName, files, verifier};

/// Looks at a directory of certificates as [`super::Certificates::from_directory`] does and says
/// everything that is known of each file, whether fine or not.
///
/// With `peer`, the name that this host would expect at the other end is looked at, too: that no
/// certificate of this host has it, which would be a mistake.
pub fn inspect(directory: &Path, peer: Option<&PeerName>) -> Vec<Finding> {
    let layout = match Layout::of_directory(directory) {
        Ok(layout) => layout,
        Err(error) => return vec![Finding::bad(directory, &error)],
    };
    let examined = examine(&layout, UnixTime::now());
    let mut findings = examined.findings.clone();
    if let [only] = &layout.pairs[..] {
        let (cannot, error) = match only.cert.ends_with("server-cert.pem") {
            true => ("it can listen and not dial", examined.dials.as_ref().err()),
            false => ("it can dial and not listen", examined.listens.as_ref().err()),
        };
        let remedy = error.map(|error| Finding::bad(directory, error).remedy).unwrap_or_default();
        let text = format!("one certificate of this host: {cannot}");
        findings.push(Finding::warning(directory, text, remedy));
    }
    let ca_key = directory.join("ca-key.pem");
    if !layout.pairs.is_empty() && ca_key.exists() {
        let remedy = "keep it elsewhere: who has it can pass for every host";
        findings.push(Finding::warning(&ca_key, "the private key of the CA, on a host", remedy));
    }
    findings.extend(peer.map(|peer| expected(directory, &layout, peer)));
    findings
}

/// A peer that is this host itself.
fn expected(directory: &Path, layout: &Layout, peer: &PeerName) -> Finding {
    if let Err(error) = peer.check() {
        return Finding::bad(directory, &error);
    }
    // Of certificates that cannot be used, too: it is the name that is asked for.
    let chain = |cert: &PathBuf| files::certificates(cert).unwrap_or_default();
    let is_ours = |cert: &&PathBuf| {
        let own = chain(cert);
        own.first().is_some_and(|own| verifier::is_for(own, peer).unwrap_or(false))
    };
    let ours = layout.pairs.iter().map(|pair| &pair.cert).find(is_ours);
    let remedy = "name the other host at this end, and this one at the other";
    match ours {
        Some(cert) => {
            let text = format!("the peer {peer} is this host itself");
            Finding::warning(cert, text, remedy)
        }
        None => Finding::fine(directory, format!("the peer {peer} is another host")),
    }
}
