//! The tables of rules: what is in them, and what happens when others change them.

use wharf_testkit::needs_root;

use crate::scene::{Asks, Host, bridge_network, eventually};

#[test]
fn rules_that_others_flush_come_back() {
    if !needs_root("rules_that_others_flush_come_back") {
        return;
    }
    let host = Host::new();
    let chain = bridge_network("n", "cni0", &["10.88.0.0/24", "fd00:88::/64"]);
    let pod = host.pod("p");
    let result = host.add(&pod, &chain, &Asks::default()).unwrap();
    let before = host.nft("list table inet wharf");
    assert!(before.contains("10.88.0.0/24 . 10.88.0.0/24"), "{before}");
    host.nft("flush ruleset");
    eventually("the table is back", || {
        host.nft("list ruleset").contains("table inet wharf")
    });
    assert_eq!(host.nft("list table inet wharf"), before);
    // A part of it.
    host.nft("delete element inet wharf local4 { 10.88.0.0/24 . 10.88.0.0/24 }");
    eventually("the element is back", || {
        host.nft("list table inet wharf") == before
    });
    // After a restart of the daemon what was attached is what is there, and nothing else.
    host.nft("add element inet wharf local4 { 10.77.0.0/24 . 10.77.0.0/24 }");
    let host = host.restarted();
    host.restore(&[("p", &chain, &Asks::default(), &result)]);
    assert_eq!(host.nft("list table inet wharf"), before);
    let host = host.restarted();
    host.restore(&[]);
    assert!(!host.nft("list table inet wharf").contains("10.88"));
    assert!(!host.ip("-o link").contains("veth"), "orphans are swept");
}
