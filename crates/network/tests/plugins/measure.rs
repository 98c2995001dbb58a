//! How long the plugins take. Not run with the others: `cargo test -p wharf-network --test plugins
//! measure -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wharf_testkit::needs_root;

use crate::scene::{Asks, Host, Pod, bridge_network, exec_chain, reference};

const PODS: u16 = 50;
/// Threads that attach at the same time: the kernel's lock of all interfaces lets no more through.
const WORKERS: usize = 4;

fn network(subnets: &[&str]) -> Value {
    let mut chain = bridge_network("n", "cni0", subnets);
    let portmap = json!({ "type": "portmap", "backend": "nftables", "capabilities": { "portMappings": true } });
    chain["plugins"].as_array_mut().unwrap().push(portmap);
    chain
}

fn ask(port: u16) -> Asks {
    let port = json!([{ "hostPort": 20_000 + port, "containerPort": 80, "protocol": "tcp" }]);
    Asks {
        runtime: json!({ "portMappings": port }).as_object().unwrap().clone(),
        ..Asks::default()
    }
}

fn pods(host: &Host, name: &str) -> Vec<(Pod, Asks)> {
    let pod = |i: u16| (host.pod(&format!("{name}-{i}")), ask(i));
    (0..PODS).map(pod).collect()
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[times.len() * share / 100];
    println!(
        "{what}: median {:?}, 10 % {:?}, 90 % {:?}",
        at(50),
        at(10),
        at(90)
    );
}

#[test]
#[ignore = "a measurement"]
fn attach_and_detach() {
    if !needs_root("attach_and_detach") {
        return;
    }
    for (name, subnets) in [
        ("IPv4", &["10.88.0.0/16"][..]),
        ("dual stack", &["10.88.0.0/16", "fd00:88::/64"]),
    ] {
        let host = Host::new();
        let chain = network(subnets);
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for (pod, asks) in pods(&host, "one") {
            let begin = Instant::now();
            let result = host.add(&pod, &chain, &asks).unwrap();
            adds.push(begin.elapsed());
            let begin = Instant::now();
            host.del((&pod.id, Some(&pod)), &chain, &asks, Some(&result))
                .unwrap();
            dels.push(begin.elapsed());
        }
        show(&format!("{name}, hairpin, 1 port: attach"), adds);
        show(&format!("{name}, hairpin, 1 port: detach"), dels);
        let pods = pods(&host, "many");
        let begin = Instant::now();
        std::thread::scope(|s| {
            for part in pods.chunks(usize::from(PODS) / WORKERS + 1) {
                let (host, chain) = (&host, &chain);
                let attach =
                    move |(pod, asks): &(Pod, Asks)| drop(host.add(pod, chain, asks).unwrap());
                s.spawn(move || part.iter().for_each(attach));
            }
        });
        println!("{name}: {PODS} at once: {:?}", begin.elapsed());
    }
    let Some(bin) = reference() else { return };
    let host = Host::new();
    let mut chain = network(&["10.88.0.0/16"]);
    chain["plugins"][0]["ipam"]["dataDir"] = json!(host.directory.path());
    let mut adds = Vec::new();
    for (pod, asks) in pods(&host, "theirs").iter().take(10) {
        let begin = Instant::now();
        exec_chain(&bin, &host.place, "ADD", pod, (&chain, asks), None).unwrap();
        adds.push(begin.elapsed());
    }
    show("reference plugins by exec, IPv4, 1 port: attach", adds);
}
