//! Networks that people make, with the built-in plugins and real traffic.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::json;
use wharf_network::named::{
    Connect, CreateNetwork, Endpoint, NamedError, NamedNetwork, NamedNetworks, WantedSubnet,
};
use wharf_network::{IpNet, Networks, NetworksConfig};
use wharf_types::Kind;

use crate::scene::{Host, Pod};
use crate::settings::reaches;

/// What the daemon's binary does under this name, for tests that have none.
const HELPER: &str = r#"#!/bin/sh
f=/proc/sys/$2
if [ $# = 3 ]; then exec nsenter --net="$1" sh -c 'echo "$1" > "$0"' "$f" "$3"; fi
exec nsenter --net="$1" cat "$f"
"#;

struct Net {
    host: Host,
    named: NamedNetworks,
}

fn open(host: &Host) -> NamedNetworks {
    let dir = host.directory.path();
    let helper = dir.join("helper");
    if !helper.exists() {
        std::fs::write(&helper, HELPER).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let config = NetworksConfig {
        config_dir: dir.join("net.d"),
        bin_dirs: Vec::new(),
        root: dir.join("root"),
        state: dir.join("state"),
        boot: "boot".to_owned(),
        builtin: true,
        default_network: false,
        grace: Duration::ZERO,
        open_files: None,
        helper,
    };
    host.in_net(|| {
        let networks = Networks::open(config, host.plugins.clone()).unwrap();
        NamedNetworks::open(networks, &dir.join("root")).unwrap()
    })
}

impl Net {
    fn begin(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: {test} needs root");
            return None;
        }
        let host = Host::new();
        let named = open(&host);
        Some(Self { host, named })
    }

    /// Does something in the host's network, as a daemon there would.
    fn wait<T: Send>(&self, work: impl AsyncFnOnce(&NamedNetworks) -> T + Send) -> T {
        self.host.in_net(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(work(&self.named))
        })
    }

    fn create(&self, asked: CreateNetwork) -> Result<NamedNetwork, NamedError> {
        self.wait(async |named| named.create(asked).await)
    }

    fn connect(
        &self,
        network: &str,
        pod: &Pod,
        addresses: &[&str],
    ) -> Result<Endpoint, NamedError> {
        let asked = Connect {
            pod: pod.id.clone(),
            netns: pod.netns(),
            names: vec![format!("{}-name", pod.id), "alias".to_owned()],
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ports: Vec::new(),
        };
        self.wait(async |named| named.connect(network, asked).await)
    }

    fn disconnect(&self, network: &str, pod: &Pod) -> Result<(), NamedError> {
        let netns = Some(pod.netns());
        self.wait(async |named| named.disconnect(network, &pod.id, netns).await)
    }

    fn remove(&self, network: &str) -> Result<NamedNetwork, NamedError> {
        self.wait(async |named| named.remove(network).await)
    }

    /// Bridges and what is in the sets of the rules.
    fn things(&self) -> (String, String) {
        let links = self.host.ip("-o link show type bridge");
        let rules = self.host.nft("list ruleset");
        let elements = rules
            .lines()
            .filter(|l| l.contains("elements") || l.contains("wh-"));
        (links, elements.collect::<Vec<_>>().join("\n"))
    }
}

fn network(name: &str) -> CreateNetwork {
    CreateNetwork {
        name: name.to_owned(),
        ..CreateNetwork::default()
    }
}

fn in_subnet(name: &str, subnet: &str) -> CreateNetwork {
    CreateNetwork {
        subnets: vec![WantedSubnet {
            subnet: subnet.parse().unwrap(),
            gateway: None,
            range: None,
        }],
        ..network(name)
    }
}

fn address(endpoint: &Endpoint) -> IpAddr {
    endpoint.addresses[0].addr
}

#[test]
fn pods_of_one_network_reach_each_other_and_those_of_another_do_not() {
    let Some(net) = Net::begin("pods_of_one_network") else {
        return;
    };
    let front = net.create(network("front")).unwrap();
    let back = net
        .create(CreateNetwork {
            ipv6: true,
            ..network("back")
        })
        .unwrap();
    assert_eq!((front.subnets.len(), back.subnets.len()), (1, 2));
    assert!(!front.subnets[0].subnet.overlaps(back.subnets[0].subnet));
    let [a, b, c] = ["a", "b", "c"].map(|id| net.host.pod(id));
    let at_a = net.connect("front", &a, &[]).unwrap();
    let at_b = net.connect(&front.id[..8], &b, &[]).unwrap();
    let at_c = net.connect("back", &c, &[]).unwrap();
    assert_eq!((at_a.interface.as_str(), at_c.addresses.len()), ("eth0", 2));
    assert!(front.subnets[0].subnet.contains(address(&at_b)));
    assert!(reaches(&a, &b, address(&at_b)));
    assert!(!reaches(&a, &c, address(&at_c)), "between networks");
    assert!(!reaches(&c, &a, address(&at_a)), "between networks");
    assert_eq!(net.named.endpoints(&front), [at_a.clone(), at_b]);
    // In both: the second one brings no second way to the world.
    let second = net.connect("back", &a, &[]).unwrap();
    assert_eq!(second.interface, "eth1");
    assert!(reaches(&a, &c, address(&at_c)));
    let defaults = a.say("/sbin/ip", &["-4", "route", "show", "default"]);
    assert_eq!(defaults.lines().count(), 1, "{defaults}");
    assert!(defaults.contains("eth0"), "{defaults}");
    let of_a = net.named.memberships("a");
    let networks: Vec<&str> = of_a.iter().map(|m| m.network.as_str()).collect();
    assert_eq!(networks, ["front", "back"]);
    assert_eq!(of_a[0].names, ["a-name", "alias"]);
    assert_eq!(of_a[0].addresses, [address(&at_a)]);
    net.disconnect("back", &a).unwrap();
    let left = a.say("/sbin/ip", &["route"]);
    let rules = net.host.nft("list ruleset");
    assert!(!reaches(&a, &c, address(&at_c)), "{left}\n{rules}");
    assert!(reaches(
        &a,
        &b,
        net.named.endpoints(&front)[1].addresses[0].addr
    ));
}

#[test]
fn a_network_goes_with_all_it_had_and_not_while_somebody_is_in_it() {
    let Some(net) = Net::begin("a_network_goes") else {
        return;
    };
    // The table of rules is made once and stays.
    let first = net.create(network("first")).unwrap();
    let pod = net.host.pod("p");
    net.connect("first", &pod, &[]).unwrap();
    net.disconnect("first", &pod).unwrap();
    net.remove("first").unwrap();
    let before = net.things();
    assert!(!before.0.contains(&first.bridge()), "{before:?}");

    let made = net.create(network("mine")).unwrap();
    net.connect("mine", &pod, &[]).unwrap();
    assert!(net.things().0.contains(&made.bridge()));
    let used = net.remove("mine").unwrap_err();
    assert_eq!(used.kind(), Kind::Conflict);
    assert!(used.to_string().contains("p-name"), "{used}");
    let pruned = net.wait(async |named| named.prune(|_| true).await);
    assert_eq!(pruned, Vec::<String>::new());
    let twice = net.connect("mine", &pod, &[]).unwrap_err();
    assert_eq!(twice.kind(), Kind::Conflict, "{twice}");
    net.disconnect("mine", &pod).unwrap();
    let gone = net.disconnect("mine", &pod).unwrap_err();
    assert_eq!(gone.kind(), Kind::Conflict, "{gone}");
    let pruned = net.wait(async |named| named.prune(|n| n.name == "mine").await);
    assert_eq!(pruned, ["mine"]);
    assert_eq!(net.things(), before);
    let noted = net.host.directory.path().join("state/networks");
    assert_eq!(std::fs::read_dir(noted).unwrap().count(), 0);
    assert_eq!(net.remove("mine").unwrap_err().kind(), Kind::NotFound);
    assert!(net.named.list().is_empty());
}

#[test]
fn addresses_that_somebody_has_are_refused_and_never_chosen() {
    let Some(net) = Net::begin("addresses_that_somebody_has") else {
        return;
    };
    // The host's own network is where the first choice would be.
    net.host.ip("link add lan type bridge");
    net.host.ip("link set lan up");
    net.host.ip("addr add 172.18.0.9/16 dev lan");
    let chosen = net.create(network("chosen")).unwrap();
    assert_eq!(
        chosen.subnets[0].subnet,
        "172.19.0.0/16".parse::<IpNet>().unwrap()
    );
    for (wrong, kind, word) in [
        (
            in_subnet("x", "172.18.4.0/24"),
            Kind::Conflict,
            "route of this machine",
        ),
        (
            in_subnet("x", "172.19.4.0/24"),
            Kind::Conflict,
            "\"chosen\"",
        ),
        (in_subnet("x", "10.0.0.1/24"), Kind::Invalid, "10.0.0.1/24"),
        (network("chosen"), Kind::AlreadyExists, "chosen"),
        (network("../x"), Kind::Invalid, "../x"),
        (network("host"), Kind::Invalid, "always there"),
        (network(&"x".repeat(200)), Kind::Invalid, "at most"),
        (
            CreateNetwork {
                options: BTreeMap::from([(
                    "com.docker.network.driver.mtu".to_owned(),
                    "many".to_owned(),
                )]),
                ..network("x")
            },
            Kind::Invalid,
            "many",
        ),
    ] {
        let e = net.create(wrong).unwrap_err();
        assert_eq!(e.kind(), kind, "{e}");
        assert!(e.to_string().contains(word), "{e}");
    }
    assert_eq!(net.named.list(), [chosen]);
    // And one that a daemon finds again.
    let later = open(&net.host);
    assert_eq!(later.list(), net.named.list());
}

#[test]
fn an_address_may_be_asked_for_and_internal_networks_lead_nowhere() {
    let Some(net) = Net::begin("an_address_may_be_asked_for") else {
        return;
    };
    let asked = CreateNetwork {
        internal: true,
        ..in_subnet("inner", "10.77.0.0/24")
    };
    net.create(asked).unwrap();
    let [a, b] = ["a", "b"].map(|id| net.host.pod(id));
    let at_a = net.connect("inner", &a, &["10.77.0.77"]).unwrap();
    assert_eq!(at_a.addresses, ["10.77.0.77/24".parse::<IpNet>().unwrap()]);
    let before = net.things();
    let taken = net.connect("inner", &b, &["10.77.0.77"]).unwrap_err();
    assert!(wharf_types::chain(&taken).contains("10.77.0.77"), "{taken}");
    net.connect("inner", &b, &["10.78.0.1"]).unwrap_err();
    // What failed left nothing, and the name of the interface is free again.
    assert_eq!(net.things(), before);
    let at_b = net.connect("inner", &b, &[]).unwrap();
    assert_eq!(at_b.interface, "eth0");
    assert!(reaches(&a, &b, address(&at_b)));
    let routes = a.say("/sbin/ip", &["route"]);
    assert!(!routes.contains("default"), "{routes}");
    assert!(!before.1.contains("10.77.0.0/24"), "{}", before.1);
    assert!(net.named.memberships("a")[0].internal);
}

#[test]
fn the_configuration_of_a_network_is_what_was_asked_for() {
    let Some(net) = Net::begin("the_configuration_of_a_network") else {
        return;
    };
    let options = [
        ("com.docker.network.driver.mtu", "1300"),
        ("com.docker.network.bridge.enable_icc", "false"),
    ];
    let asked = CreateNetwork {
        options: options.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        subnets: vec![WantedSubnet {
            subnet: "10.79.0.0/24".parse().unwrap(),
            gateway: Some("10.79.0.254".parse().unwrap()),
            range: Some("10.79.0.64/26".parse().unwrap()),
        }],
        ..network("tuned")
    };
    net.create(asked).unwrap();
    let [a, b] = ["a", "b"].map(|id| net.host.pod(id));
    let at_a = net.connect("tuned", &a, &[]).unwrap();
    let at_b = net.connect("tuned", &b, &[]).unwrap();
    for endpoint in [&at_a, &at_b] {
        let range: IpNet = "10.79.0.64/26".parse().unwrap();
        assert!(range.contains(address(endpoint)), "{endpoint:?}");
    }
    assert!(!reaches(&a, &b, address(&at_b)), "neighbours are apart");
    let link = a.say("/sbin/ip", &["link", "show", "eth0"]);
    assert!(link.contains("mtu 1300"), "{link}");
    let route = a.say("/sbin/ip", &["route", "show", "default"]);
    assert!(route.contains("via 10.79.0.254"), "{route}");
    assert_eq!(json!(at_a.mac).as_str().unwrap().len(), 17);
}
