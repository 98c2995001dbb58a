//! DNS messages as far as a forwarder needs them: questions are read, answers about our own names are
//! written, everything else is passed on as bytes. Total: any bytes give a question or a reason.
//! Compression is never followed, so there is nothing to loop. Source: RFC 1035, RFC 6891 (EDNS).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a message by UDP without EDNS.
pub const UDP_MIN: usize = 512;
/// Bytes of a message by UDP that we send or take, whatever a client offers.
pub const UDP_MAX: usize = 4096;
/// Bytes of a message by TCP.
pub const TCP_MAX: usize = u16::MAX as usize;
/// Bytes of a name in a message (RFC 1035, 3.1).
const NAME_MAX: usize = 255;
/// Bytes of a label.
const LABEL_MAX: u8 = 63;
/// Bytes of the header.
const HEADER: usize = 12;
/// Records behind the question that are looked at for EDNS.
const RECORDS_MAX: u16 = 16;
/// How long an answer about our own names is good for: a neighbour may go at any time.
const TTL: u32 = 0;

/// Type A.
pub const A: u16 = 1;
/// Type PTR.
pub const PTR: u16 = 12;
/// Type AAAA.
pub const AAAA: u16 = 28;
/// Type ANY.
pub const ANY: u16 = 255;
const OPT: u16 = 41;
const IN: u16 = 1;

/// Codes of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// Answered.
    Fine = 0,
    /// The question cannot be read.
    Malformed = 1,
    /// We could not find out.
    ServerFailure = 2,
    /// There is no such name.
    NoSuchName = 3,
    /// Not a question of the ordinary kind.
    NotImplemented = 4,
    /// A version of EDNS that we do not speak.
    BadVersion = 16,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Chosen by the client.
    pub id: u16,
    /// The name, in small letters, without the last dot; what no name of ours has is escaped.
    pub name: String,
    /// The type.
    pub kind: u16,
    /// The class.
    pub class: u16,
    /// Recursion is desired, checking disabled: given back as they came.
    flags: u16,
    /// Name, type and class as they came.
    question: Vec<u8>,
    /// Bytes that the client takes by UDP, and the version, if it speaks EDNS.
    edns: Option<(u16, u8)>,
}

/// Not a question that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// Not a message of a client at all: no answer.
    Ignore,
    /// Its answer says why.
    Refuse(Vec<u8>),
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(two.try_into().ok()?))
}

/// Reads a client's message.
///
/// # Errors
///
/// It is none, or not one question.
pub fn read(message: &[u8]) -> Result<Query, Unusable> {
    let (Some(id), Some(flags)) = (u16_at(message, 0), u16_at(message, 2)) else {
        return Err(Unusable::Ignore);
    };
    if message.len() < HEADER || flags & 0x8000 != 0 {
        return Err(Unusable::Ignore);
    }
    let refused = |code| Unusable::Refuse(header(id, flags, code, [0; 4], false).to_vec());
    if flags & 0x7800 != 0 {
        return Err(refused(Code::NotImplemented));
    }
    let query = question(message, id, flags).ok_or_else(|| refused(Code::Malformed))?;
    if query.edns.is_some_and(|(_, version)| version > 0) {
        return Err(Unusable::Refuse(query.answer(
            Code::BadVersion,
            &[],
            UDP_MIN,
        )));
    }
    Ok(query)
}

fn question(message: &[u8], id: u16, flags: u16) -> Option<Query> {
    let count = |n: usize| u16_at(message, 4 + 2 * n);
    if count(0)? != 1 {
        return None;
    }
    let (name, end) = name(message)?;
    let (kind, class) = (u16_at(message, end)?, u16_at(message, end + 2)?);
    let question = message.get(HEADER..end + 4)?.to_vec();
    let others = count(1)?.checked_add(count(2)?)?;
    let more = others.checked_add(count(3)?)?;
    if more > RECORDS_MAX {
        return None;
    }
    let (mut at, mut edns) = (end + 4, None);
    for n in 0..more {
        let root = message.get(at)? == &0;
        at = after_name(message, at)?;
        let (kind, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
        let data = usize::from(u16_at(message, at + 8)?);
        if n >= others && kind == OPT {
            // Only one, and of the root.
            if edns.is_some() || !root {
                return None;
            }
            edns = Some((class, *message.get(at + 5)?));
        }
        at = at.checked_add(10)?.checked_add(data)?;
        if at > message.len() {
            return None;
        }
    }
    Some(Query {
        id,
        name,
        kind,
        class,
        flags: flags & 0x0110,
        question,
        edns,
    })
}

/// The name of the question, and where it ends. A question has nothing before it to point to.
fn name(message: &[u8]) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let length = *message.get(at)?;
        if length > LABEL_MAX {
            return None;
        }
        at += 1;
        if length == 0 {
            break;
        }
        let label = message.get(at..at + usize::from(length))?;
        at += usize::from(length);
        if at - HEADER >= NAME_MAX {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for byte in label {
            match byte {
                b'.' | b'\\' | 0..=b' ' | 127.. => escape(&mut name, *byte),
                plain => name.push(char::from(plain.to_ascii_lowercase())),
            }
        }
    }
    Some((name, at))
}

/// As three digits: no name of ours has such a byte.
fn escape(name: &mut String, byte: u8) {
    name.push('\\');
    for part in [byte / 100, byte / 10 % 10, byte % 10] {
        name.push(char::from(b'0' + part));
    }
}

/// Where a name ends that nobody needs to know.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    let begin = at;
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return Some(at + 1),
            1..=LABEL_MAX => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            _ => return None,
        }
        if at - begin > NAME_MAX {
            return None;
        }
    }
}

fn header(id: u16, flags: u16, code: Code, counts: [u16; 4], own: bool) -> [u8; HEADER] {
    // An answer; recursion is available. Ours alone are authoritative.
    let own = if own { 0x0400 } else { 0 };
    let flags = 0x8080 | own | (flags & 0x7910) | (code as u16 & 15);
    let mut bytes = [0; HEADER];
    let words = [id, flags].into_iter().chain(counts);
    for (place, word) in bytes.chunks_exact_mut(2).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// What an answer says about the name that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An address, as A or AAAA.
    Address(IpAddr),
    /// A name, as PTR.
    Name(String),
}

impl Record {
    /// `None` for a name that cannot be written.
    fn write(&self) -> Option<Vec<u8>> {
        let (kind, data) = match self {
            Self::Address(IpAddr::V4(a)) => (A, a.octets().to_vec()),
            Self::Address(IpAddr::V6(a)) => (AAAA, a.octets().to_vec()),
            Self::Name(name) => (PTR, encode(name)?),
        };
        // The name is that of the question, which begins behind the header.
        let mut bytes = vec![0xc0, 12];
        bytes.extend(kind.to_be_bytes());
        bytes.extend(IN.to_be_bytes());
        bytes.extend(TTL.to_be_bytes());
        bytes.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        bytes.extend(data);
        Some(bytes)
    }
}

fn encode(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok()?;
        if !(1..=LABEL_MAX).contains(&length) {
            return None;
        }
        bytes.push(length);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= NAME_MAX).then_some(bytes)
}

impl Query {
    /// Whether it is of the class of the internet.
    pub fn is_internet(&self) -> bool {
        self.class == IN
    }

    /// Whether A or AAAA (or all) is asked for, as this address would answer.
    pub fn wants(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => [A, ANY].contains(&self.kind),
            IpAddr::V6(_) => [AAAA, ANY].contains(&self.kind),
        }
    }

    /// The address that is asked about, if the name is one in `in-addr.arpa` or `ip6.arpa`.
    pub fn reverse(&self) -> Option<IpAddr> {
        if self.kind != PTR {
            return None;
        }
        if let Some(text) = self.name.strip_suffix(".in-addr.arpa") {
            let four = text.parse::<Ipv4Addr>().ok()?.octets();
            let [a, b, c, d] = four;
            return Some(Ipv4Addr::new(d, c, b, a).into());
        }
        let digits = self.name.strip_suffix(".ip6.arpa")?;
        let mut bits: u128 = 0;
        let mut count = 0;
        for digit in digits.split('.').rev() {
            let value = u128::from_str_radix(digit, 16).ok()?;
            count += 1;
            if digit.len() != 1 || count > 32 {
                return None;
            }
            bits = (bits << 4) | value;
        }
        (count == 32).then(|| Ipv6Addr::from(bits).into())
    }

    /// Bytes of an answer by UDP that the client takes.
    pub fn udp_room(&self) -> usize {
        let offered = self.edns.map_or(UDP_MIN, |(size, _)| usize::from(size));
        offered.clamp(UDP_MIN, UDP_MAX)
    }

    /// An answer of ours; what does not fit in `room` is left out, and the answer says so.
    pub fn answer(&self, code: Code, records: &[Record], room: usize) -> Vec<u8> {
        let tail = self.tail(code);
        let mut body = self.question.clone();
        let (mut count, mut cut) = (0, false);
        for record in records.iter().filter_map(Record::write) {
            if HEADER + body.len() + record.len() + tail.len() > room || count == u16::MAX {
                cut = true;
                break;
            }
            body.extend(record);
            count += 1;
        }
        let counts = [1, count, 0, u16::from(!tail.is_empty())];
        let flags = self.flags | if cut { 0x0200 } else { 0 };
        let own = [Code::Fine, Code::NoSuchName].contains(&code);
        let mut bytes = header(self.id, self.flags, code, counts, own).to_vec();
        bytes[2] |= flags.to_be_bytes()[0];
        bytes.extend(body);
        bytes.extend(tail);
        bytes
    }

    /// The record of EDNS, for clients that speak it.
    fn tail(&self, code: Code) -> Vec<u8> {
        if self.edns.is_none() {
            return Vec::new();
        }
        let mut tail = vec![0];
        tail.extend(OPT.to_be_bytes());
        tail.extend(u16::try_from(UDP_MAX).unwrap_or(u16::MAX).to_be_bytes());
        let upper = u8::try_from(code as u16 >> 4).unwrap_or(0);
        tail.extend([upper, 0, 0, 0, 0, 0]);
        tail
    }

    /// Whether `message` answers this question, which was asked under another id.
    pub fn is_answered_by(&self, message: &[u8], id: u16) -> bool {
        let answer = u16_at(message, 2).is_some_and(|flags| flags & 0x8000 != 0);
        let same = message.get(HEADER..HEADER + self.question.len());
        u16_at(message, 0) == Some(id)
            && answer
            && u16_at(message, 4) == Some(1)
            && same.is_some_and(|q| q.eq_ignore_ascii_case(&self.question))
    }

    /// Somebody else's answer, with the client's id, in the `room` that it has.
    pub fn passed_on(&self, mut message: Vec<u8>, room: usize) -> Vec<u8> {
        if message.len() > room {
            let mut short = self.answer(code_of(&message), &[], room);
            short[2] |= 0x02;
            return short;
        }
        let id = self.id.to_be_bytes();
        for (place, byte) in message.iter_mut().zip(id) {
            *place = byte;
        }
        message
    }
}

fn code_of(message: &[u8]) -> Code {
    match failed(message) {
        true => Code::ServerFailure,
        false => Code::Fine,
    }
}

/// Whether a server says that it could not or would not: another may.
pub fn failed(message: &[u8]) -> bool {
    let code = message.get(3).map_or(2, |flags| flags & 15);
    ![0, 3].contains(&code)
}

/// Gives a message another id.
pub fn set_id(message: &mut [u8], id: u16) {
    for (place, byte) in message.iter_mut().zip(id.to_be_bytes()) {
        *place = byte;
    }
}

/// A question, as a client would send it. For tests and for looking things up ourselves.
///
/// `None` for a name that cannot be written.
pub fn ask(id: u16, name: &str, kind: u16, edns: Option<u16>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for word in [id, 0x0100, 1, 0, 0, u16::from(edns.is_some())] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(encode(name)?);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(IN.to_be_bytes());
    if let Some(size) = edns {
        bytes.push(0);
        bytes.extend(OPT.to_be_bytes());
        bytes.extend(size.to_be_bytes());
        bytes.extend([0; 6]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(name: &str, kind: u16, edns: Option<u16>) -> Query {
        read(&ask(7, name, kind, edns).unwrap()).unwrap()
    }

    #[test]
    fn a_question_is_read_as_it_was_asked() {
        let q = asked("Web.My-Net", AAAA, Some(1232));
        assert_eq!((q.id, q.name.as_str(), q.kind), (7, "web.my-net", AAAA));
        assert_eq!(q.udp_room(), 1232);
        assert_eq!(asked("web", A, None).udp_room(), 512);
        assert_eq!(asked("web", A, Some(9)).udp_room(), 512);
        assert_eq!(asked("web", A, Some(65_000)).udp_room(), 4096);
    }

    #[test]
    fn addresses_are_asked_about_backwards() {
        let v4 = asked("4.3.2.10.in-addr.arpa", PTR, None);
        assert_eq!(v4.reverse(), Some("10.2.3.4".parse().unwrap()));
        let nibbles = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        let v6 = asked(nibbles, PTR, None);
        assert_eq!(v6.reverse(), Some("fd00::1".parse().unwrap()));
        for wrong in ["3.2.10.in-addr.arpa", "x.ip6.arpa", "web", "in-addr.arpa"] {
            assert_eq!(asked(wrong, PTR, None).reverse(), None, "{wrong}");
        }
        assert_eq!(asked("4.3.2.10.in-addr.arpa", A, None).reverse(), None);
    }

    #[test]
    fn an_answer_has_the_question_the_records_and_edns() {
        let records = [
            Record::Address("10.0.0.1".parse().unwrap()),
            Record::Address("fd00::1".parse().unwrap()),
            Record::Name("web.net".to_owned()),
        ];
        let q = asked("web", ANY, Some(1232));
        let bytes = q.answer(Code::Fine, &records, q.udp_room());
        assert!(q.is_answered_by(&bytes, 7));
        assert!(!q.is_answered_by(&bytes, 8));
        assert_eq!(&bytes[2..12], [0x85, 0x80, 0, 1, 0, 3, 0, 0, 0, 1]);
        let other = asked("other", ANY, None);
        assert!(!other.is_answered_by(&bytes, 7));
    }

    #[test]
    fn what_does_not_fit_is_said_to_be_cut() {
        let address = |n: u32| Record::Address(Ipv4Addr::from(n).into());
        let records: Vec<Record> = (0..100).map(address).collect();
        let q = asked("web", A, None);
        let bytes = q.answer(Code::Fine, &records, 512);
        assert!(bytes.len() <= 512 && bytes.len() > 400);
        assert_eq!(bytes[2] & 2, 2);
        let whole = q.answer(Code::Fine, &records, TCP_MAX);
        assert_eq!((whole[2] & 2, u16_at(&whole, 6)), (0, Some(100)));
        let short = q.passed_on(whole.clone(), 512);
        assert_eq!((short[2] & 2, u16_at(&short, 6)), (2, Some(0)));
        assert!(q.is_answered_by(&short, 7));
        assert_eq!(q.passed_on(whole.clone(), TCP_MAX), whole);
    }

    #[test]
    fn what_is_no_question_is_ignored_or_refused() {
        assert_eq!(read(&[]), Err(Unusable::Ignore));
        let good = ask(7, "web", A, None).unwrap();
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(read(&answer), Err(Unusable::Ignore));
        let code = |bytes: &[u8]| match read(bytes) {
            Err(Unusable::Refuse(said)) => {
                assert_eq!(said[..2], bytes[..2]);
                u16::from(said[3] & 15)
            }
            other => panic!("{other:?}"),
        };
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            bytes
        };
        assert_eq!(code(&changed(2, 0x29)), Code::NotImplemented as u16);
        assert_eq!(code(&changed(5, 2)), Code::Malformed as u16);
        assert_eq!(code(&changed(12, 0xc0)), Code::Malformed as u16);
        assert_eq!(code(&changed(12, 60)), Code::Malformed as u16);
        assert_eq!(code(&changed(11, 1)), Code::Malformed as u16);
        let mut version = ask(7, "web", A, Some(1232)).unwrap();
        let at = version.len() - 5;
        version[at] = 1;
        let Err(Unusable::Refuse(said)) = read(&version) else {
            panic!("a version of EDNS that does not exist");
        };
        assert_eq!((said[3] & 15, said[said.len() - 6]), (0, 1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_question_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(q) = read(&bytes) {
                prop_assert!(q.answer(Code::Fine, &[], 512).len() <= 512);
                q.reverse();
                q.is_answered_by(&bytes, 1);
            }
        }

        #[test]
        fn a_question_that_was_changed_anywhere_is_a_question_or_not(
            at in 0_usize..60,
            to in any::<u8>(),
            cut in 0_usize..60,
        ) {
            let mut bytes = ask(1, "a.neighbour.of-mine", A, Some(1232)).unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _any = read(&bytes);
        }

        #[test]
        fn what_is_written_is_read_again(labels in proptest::collection::vec("[a-z0-9_-]{1,20}", 1..8)) {
            let name = labels.join(".");
            prop_assert_eq!(asked(&name, A, None).name, name);
        }
    }
}
