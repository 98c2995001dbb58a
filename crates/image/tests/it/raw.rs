//! Writes tars record by record, so that every field can be wrong.

/// A header to be, with GNU magic unless said otherwise.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) header: [u8; 512],
    pub(crate) data: Vec<u8>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Raw {
    pub(crate) fn new(flag: u8, name: &str) -> Self {
        let mut raw = Self {
            header: [0; 512],
            data: Vec::new(),
            pax: Vec::new(),
        };
        raw = raw.text(0, name.as_bytes()).text(257, b"ustar\x0000");
        raw.header[156] = flag;
        raw.mode(if flag == b'5' { 0o755 } else { 0o644 })
            .owner(0, 0)
            .size(0)
            .time(1000)
    }

    pub(crate) fn file(name: &str, data: &str) -> Self {
        Self::new(b'0', name).data(data.as_bytes())
    }

    pub(crate) fn dir(name: &str) -> Self {
        Self::new(b'5', name)
    }

    pub(crate) fn link(flag: u8, name: &str, target: &str) -> Self {
        Self::new(flag, name).text(157, target.as_bytes())
    }

    pub(crate) fn device(flag: u8, name: &str, major: u32, minor: u32) -> Self {
        let octal = |n: u32| format!("{n:07o}\0");
        Self::new(flag, name)
            .text(329, octal(major).as_bytes())
            .text(337, octal(minor).as_bytes())
    }

    pub(crate) fn text(mut self, at: usize, bytes: &[u8]) -> Self {
        self.header[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn mode(self, mode: u32) -> Self {
        self.text(100, format!("{mode:07o}\0").as_bytes())
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Self {
        self.text(108, format!("{uid:07o}\0").as_bytes())
            .text(116, format!("{gid:07o}\0").as_bytes())
    }

    pub(crate) fn size(self, size: u64) -> Self {
        self.text(124, format!("{size:011o}\0").as_bytes())
    }

    pub(crate) fn time(self, seconds: u64) -> Self {
        self.text(136, format!("{seconds:011o}\0").as_bytes())
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self.size(u64::try_from(data.len()).unwrap())
    }

    pub(crate) fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.pax.push((key.as_bytes().to_vec(), value.to_vec()));
        self
    }

    /// Header, data and padding, with a PAX header in front where one is wanted.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.pax.is_empty() {
            let records: Vec<u8> = self.pax.iter().flat_map(|(k, v)| record(k, v)).collect();
            let front = Raw::new(b'x', "pax");
            out.extend(front.data(&records).bytes());
        }
        let mut header = self.header;
        if header[148..156] == [0; 8] {
            header[148..156].copy_from_slice(b"        ");
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        out.extend(header);
        out.extend(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

/// `<length> <key>=<value>\n`.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    let length = length.to_string();
    [length.as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A whole archive.
pub(crate) fn tar(entries: &[Raw]) -> Vec<u8> {
    let mut out: Vec<u8> = entries.iter().flat_map(Raw::bytes).collect();
    out.extend([0; 1024]);
    out
}
