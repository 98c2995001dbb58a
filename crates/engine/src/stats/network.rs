//! Counters of a pod's interfaces, from `/proc/PID/net/dev` (proc_pid_net(5)) of a process in its
//! network namespace.

use std::io::Read as _;

use super::usage::Interface;
use crate::limits::NET_DEV_MAX;

/// The interfaces that process `pid` sees, loopback left out; none when it is gone.
pub(super) fn interfaces(pid: u32) -> Option<Vec<Interface>> {
    // Not kept open: it would keep the namespace.
    let file = std::fs::File::open(format!("/proc/{pid}/net/dev")).ok()?;
    let mut text = String::new();
    file.take(NET_DEV_MAX).read_to_string(&mut text).ok()?;
    Some(parse(&text))
}

fn parse(text: &str) -> Vec<Interface> {
    let of_line = |line: &str| {
        // A name may hold colons, and the first number may follow without a space.
        let (name, counters) = line.rsplit_once(':')?;
        let numbers: Vec<u64> = counters
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx @ ..,
        ] = &numbers[..]
        else {
            return None;
        };
        let [tx_bytes, tx_packets, tx_errors, tx_dropped, ..] = tx else {
            return None;
        };
        Some(Interface {
            name: name.trim().to_owned(),
            rx_bytes: *rx_bytes,
            rx_packets: *rx_packets,
            rx_errors: *rx_errors,
            rx_dropped: *rx_dropped,
            tx_bytes: *tx_bytes,
            tx_packets: *tx_packets,
            tx_errors: *tx_errors,
            tx_dropped: *tx_dropped,
        })
    };
    let all = text.lines().filter_map(of_line);
    all.filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_columns() {
        let text = "Inter-|   Receive                            |  Transmit\n \
            face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed\n    \
            lo:    9    9    9    9    9     9          9         9        9    9    9    9    9     9       9          9\n  \
            eth0:100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0\n";
        let eth0 = Interface {
            name: "eth0".to_owned(),
            rx_bytes: 100,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 500,
            tx_packets: 6,
            tx_errors: 7,
            tx_dropped: 8,
        };
        assert_eq!(parse(text), [eth0]);
        assert_eq!(parse("eth0: 1 2 3"), []);
        assert_eq!(parse(""), []);
    }

    #[test]
    fn a_process_that_is_gone_has_no_network() {
        assert_eq!(interfaces(u32::MAX), None);
    }
}
