//! What the hypervisor says of its options, in the words of whoever typed the scripts' own.

use control::options::Options;
use options::typed::as_typed;

fn said(bootargs: &str, append: Option<&str>) -> String {
    let error = Options::parse(bootargs).expect_err("it can't be");
    as_typed(&error.to_string(), append)
}

#[test]
fn what_the_hypervisor_refuses_is_named_as_typed() {
    assert_eq!(
        said("bytes=5000", None),
        "malformed value '5000' for --bytes: expected whole pages of 4K"
    );
    assert!(
        said("guest=program iterations=2", None).starts_with("--iterations contradicts --guest,")
    );
    assert!(said("guest=stress split=none", None).starts_with("--split contradicts --stress,"));
    let text = said("harvest=ring tracking=hardware", None);
    assert!(
        text.starts_with("--tracking hardware contradicts --harvest ring:"),
        "{text}"
    );
    assert_eq!(
        said("vcpus=1 bytes=4M slots=3", None),
        "--slots 3 contradicts the memory, which is 2 pieces of 2M"
    );
    assert!(said("ring_entries=7", None).contains("for --ring-entries:"));
    let text = as_typed("no progress for 9 seconds (timeout=9)", None);
    assert_eq!(text, "no progress for 9 seconds (--timeout 9)");
}

#[test]
fn what_was_appended_stays_as_it_is() {
    let text = said("ring_entries=7", Some("log=debug ring_entries=7"));
    assert!(text.contains("for option 'ring_entries':"), "{text}");
    let text = said("vcpus=1 bytes=4M slots=3", Some("slots=3"));
    assert!(text.starts_with("slots=3 contradicts"), "{text}");
    assert!(said("ipa_bits=9", Some("ipa_bits=9")).contains("option 'ipa_bits'"));
    assert_eq!(
        said("colour=red", Some("colour=red")),
        "--append: unknown option 'colour' (--append help lists them)"
    );
}

#[test]
fn every_option_that_the_scripts_have_is_known() {
    for word in
        "mode=x split=x ring_entries=1 vcpus=0 bytes=x seconds=x timeout=x max_page_sharing=0"
            .split(' ')
    {
        let text = said(word, None);
        assert!(text.contains("--") && !text.contains("option '"), "{text}");
    }
}
