//! Queueing disciplines and filters: `tc(8)`, `linux/pkt_sched.h`, `linux/pkt_cls.h`.

use super::message::{Attributes, Batch, Writer, find, flag, text_of, u32_of};
use super::socket::{NetlinkError, Socket};

const NEWQDISC: u16 = 36;
const GETQDISC: u16 = 38;
const NEWTFILTER: u16 = 44;

/// Length of `struct tcmsg`.
const FIXED: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const U32_CLASSID: u16 = 1;
const U32_SEL: u16 = 5;
const U32_ACT: u16 = 7;
const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
const MIRRED_PARMS: u16 = 2;

const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// All protocols, in the network's order, as `tcm_info` has it beside the priority.
const ETH_P_ALL: u16 = 0x0003;

/// How many ticks of the packet scheduler a microsecond has (`/proc/net/psched`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TickRate {
    ticks: u64,
    microseconds: u64,
}

impl TickRate {
    /// From the text of /proc/net/psched: nanoseconds per tick are its second number's share of the
    /// first. `None` when it is not such a text.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let mut numbers = text
            .split_whitespace()
            .map(|n| u64::from_str_radix(n, 16).ok().filter(|n| *n > 0));
        let (micro, tick, clock) = (numbers.next()??, numbers.next()??, numbers.next()??);
        // tick_in_usec = t2us / us2t * clock_factor, with clock_factor = clock resolution in us.
        Some(Self {
            ticks: micro.checked_mul(clock)?,
            microseconds: tick.checked_mul(1_000_000)?,
        })
    }

    /// Ticks in so many microseconds; the largest number where it would be more.
    #[must_use]
    pub fn ticks(self, microseconds: u64) -> u32 {
        let wide =
            u128::from(microseconds) * u128::from(self.ticks) / u128::from(self.microseconds);
        u32::try_from(wide).unwrap_or(u32::MAX)
    }
}

/// A token bucket: lets a rate through, and a burst above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tbf {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may wait for tokens.
    pub limit: u32,
    /// The burst, as ticks that it takes to be sent at `rate`.
    pub buffer: u32,
}

/// Puts a token bucket at the root of an interface's sending side, as handle `1:`.
pub fn add_tbf(batch: &mut Batch, index: u32, tbf: Tbf) {
    let flags = flag::CREATE | flag::EXCLUSIVE;
    batch.push(NEWQDISC, flags, &fixed(index, 0x0001_0000, ROOT, 0), |w| {
        w.text(TCA_KIND, "tbf");
        w.nest_plain(TCA_OPTIONS, |w| {
            // struct tc_tbf_qopt: rate and peak rate (struct tc_ratespec), limit, buffer, mtu.
            let mut options = [0; 36];
            let slow = u32::try_from(tbf.rate).unwrap_or(u32::MAX);
            options[1] = 1; // link layer: Ethernet, so that no table of rates is needed
            options[8..12].copy_from_slice(&slow.to_ne_bytes());
            options[24..28].copy_from_slice(&tbf.limit.to_ne_bytes());
            options[28..32].copy_from_slice(&tbf.buffer.to_ne_bytes());
            w.raw(TBF_PARMS, &options);
            if tbf.rate >= u64::from(u32::MAX) {
                w.raw(TBF_RATE64, &tbf.rate.to_ne_bytes());
            }
        });
    });
}

/// Opens the receiving side of an interface for filters, as handle `ffff:`.
pub fn add_ingress(batch: &mut Batch, index: u32) {
    let flags = flag::CREATE | flag::EXCLUSIVE;
    batch.push(
        NEWQDISC,
        flags,
        &fixed(index, INGRESS_HANDLE, INGRESS, 0),
        |w| {
            w.text(TCA_KIND, "ingress");
        },
    );
}

/// Sends everything that an interface receives out of another one, which is an ifb: there it can
/// wait in a queue. Needs [`add_ingress`] first.
pub fn add_redirect(batch: &mut Batch, index: u32, to: u32) {
    let info = 1 << 16 | u32::from(ETH_P_ALL.to_be());
    let flags = flag::CREATE | flag::EXCLUSIVE;
    batch.push(
        NEWTFILTER,
        flags,
        &fixed(index, 0, INGRESS_HANDLE, info),
        |w| {
            w.text(TCA_KIND, "u32");
            w.nest_plain(TCA_OPTIONS, |w| {
                w.u32(U32_CLASSID, 0x0001_0001);
                // struct tc_u32_sel with one key that matches everything, terminal.
                let mut selector = [0; 32];
                selector[0] = 1;
                selector[2] = 1;
                w.raw(U32_SEL, &selector);
                w.nest_plain(U32_ACT, |w| w.nest_plain(1, |w| redirect(w, to)));
            });
        },
    );
}

/// The action `mirred`.
fn redirect(w: &mut Writer<'_>, to: u32) {
    w.text(ACT_KIND, "mirred");
    w.nest_plain(ACT_OPTIONS, |w| {
        // struct tc_mirred: index, capab, action (stolen), refcnt, bindcnt, eaction (redirect to
        // sending), ifindex.
        let mut mirred = [0; 28];
        mirred[8..12].copy_from_slice(&4_u32.to_ne_bytes());
        mirred[20..24].copy_from_slice(&1_u32.to_ne_bytes());
        mirred[24..].copy_from_slice(&to.to_ne_bytes());
        w.raw(MIRRED_PARMS, &mirred);
    });
}

/// The disciplines of an interface: their kinds, and of a token bucket what it lets through.
///
/// # Errors
/// What the kernel refused.
pub fn queues(socket: &mut Socket, index: u32) -> Result<Vec<(String, Option<Tbf>)>, NetlinkError> {
    let all = socket.dump(GETQDISC, &fixed(index, 0, 0, 0), |_| {})?;
    Ok(all
        .iter()
        .filter(|m| m.u32_at(4) == index)
        .map(|m| {
            let attributes = m.attributes(FIXED);
            let kind = find(attributes, TCA_KIND).map(text_of).unwrap_or_default();
            let options = find(attributes, TCA_OPTIONS).filter(|_| kind == "tbf");
            (kind, options.and_then(|o| bucket(Attributes::of(o))))
        })
        .collect())
}

fn bucket(options: Attributes<'_>) -> Option<Tbf> {
    let parameters = find(options, TBF_PARMS)?;
    let at = |i: usize| parameters.get(i..i + 4).map_or(0, u32_of);
    let wide = find(options, TBF_RATE64)
        .and_then(|b| b.try_into().ok())
        .map(u64::from_ne_bytes);
    Some(Tbf {
        rate: wide.unwrap_or_else(|| at(8).into()),
        limit: at(24),
        buffer: at(28),
    })
}

/// `struct tcmsg`.
fn fixed(index: u32, handle: u32, parent: u32, info: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&handle.to_ne_bytes());
    bytes[12..16].copy_from_slice(&parent.to_ne_bytes());
    bytes[16..].copy_from_slice(&info.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_what_tc_computes() {
        let rate = TickRate::read("000003e8 00000040 000f4240 3b9aca00\n").unwrap();
        assert_eq!(rate.ticks(1_000_000), 15_625_000);
        assert_eq!(rate.ticks(u64::MAX), u32::MAX);
        for bad in ["", "0 40 f4240 1", "x y z", "3e8 40"] {
            assert_eq!(TickRate::read(bad), None, "{bad}");
        }
    }
}
