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

/// What the rules of a table do, instruction by instruction, under another name of the table.
fn instructions(host: &Host, table: &str) -> String {
    let text = host.nft(&format!("--debug=netlink list table inet {table}"));
    let lines = text.lines().filter(|l| l.trim_start().starts_with('['));
    lines.map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn nft_reads_our_rules_as_it_would_write_them() {
    if !needs_root("nft_reads_our_rules_as_it_would_write_them") {
        return;
    }
    let host = Host::new();
    let chain = bridge_network("n", "cni0", &["10.88.0.0/24", "fd00:88::/64"]);
    let pod = host.pod("p");
    host.add(&pod, &chain, &Asks::default()).unwrap();
    let ours = host.nft("-t list table inet wharf");
    for rule in [
        "type nat hook prerouting priority dstnat + 1; policy accept;",
        "fib daddr type local jump hostports",
        "ip daddr 127.0.0.0/8 return",
        "ct status dnat ip saddr . ip daddr @hairpin4 masquerade",
        "ip6 saddr . ip6 daddr @local6 return",
        "iifname . oifname @isolated_pairs drop",
        "iifname @apart oifname @apart drop",
        "ct state established,related ip daddr @accept4 accept",
    ] {
        assert!(ours.contains(rule), "{rule}:\n{ours}");
    }
    // nft's own text, compiled by nft: the same instructions.
    let file = host.directory.path().join("rules");
    std::fs::write(&file, ours.replace("table inet wharf", "table inet oracle")).unwrap();
    host.nft(&format!("-f {}", file.display()));
    let (ours, theirs) = (instructions(&host, "wharf"), instructions(&host, "oracle"));
    assert!(ours.lines().count() > 60, "{ours}");
    assert_eq!(ours, theirs);
}
