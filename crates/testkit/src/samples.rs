//! The images that tests, demo, critest and the benchmarks use.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::cache;
use crate::debian;
use crate::image::{Blob, Builder, Data, Flavour, Image, Layer, LayerFile, Manifest, Packing};
use crate::tar::Entry;

/// An image, and where a registry has it.
#[derive(Clone, Debug)]
pub struct Served {
    /// Repository on the registry, without a host.
    pub repository: String,
    /// Tags; none: by digest only.
    pub tags: Vec<String>,
    /// The image.
    pub image: Image,
}

impl Served {
    /// `image` in `repository` under these tags.
    pub fn new(repository: &str, tags: &[&str], image: Image) -> Self {
        let tags = tags.iter().map(|t| String::from(*t)).collect();
        Self {
            repository: repository.into(),
            tags,
            image,
        }
    }
}

/// Busybox with a shell as its command: an OCI manifest, one gzip layer.
///
/// # Errors
/// apt or dpkg-deb failed.
pub fn busybox() -> io::Result<Image> {
    let layer = Layer::of(&debian::busybox_root()?);
    Ok(Builder::new(Flavour::Oci, [layer]).cmd(&["sh"]).build())
}

/// The same as an OCI index with a zstd layer.
///
/// # Errors
/// apt or dpkg-deb failed.
pub fn busybox_zstd() -> io::Result<Image> {
    let layer = Layer::packed(&debian::busybox_root()?, Packing::Zstd);
    Ok(Builder::new(Flavour::Oci, [layer])
        .cmd(&["sh"])
        .index(&PLATFORMS)
        .build())
}

/// An image without a program: one file `hello` with this text. Quick to make, for tests of pulls.
pub fn hello(text: &str) -> Image {
    let layer = Layer::of(&[Entry::dir("etc"), Entry::file("etc/hello", text)]);
    Builder::new(Flavour::Oci, [layer])
        .cmd(&["/nothing"])
        .build()
}

/// What critest 1.36 calls its sandbox image; peers pin it, wharf needs none.
pub const SANDBOX_IMAGE: &str = "registry.k8s.io/pause:3.10";

/// The image that demo and benchmarks run: it is among [`critest`]'s.
pub const BUSYBOX_IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// The many-layer image that [`many_layers`] makes.
pub const BIG_IMAGE: &str = "registry.k8s.io/bench/big:gzip";

const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];

/// Every image that critest 1.36 pulls, except the one that it names by upstream's digest.
///
/// The names are compiled into critest; mirrors (hosts.toml) lead all registries to ours.
///
/// # Errors
/// apt, dpkg-deb or the C compiler failed.
pub fn critest() -> io::Result<Vec<Served>> {
    let busybox = Layer::of(&debian::busybox_root()?);
    let list = |layers: &[&Layer]| {
        let layers: Vec<Layer> = layers.iter().copied().cloned().collect();
        Builder::new(Flavour::Docker, layers)
            .cmd(&["sh"])
            .index(&PLATFORMS)
    };
    let e2e = |name: &str, tag: &str, image| {
        Served::new(&format!("e2e-test-images/{name}"), &[tag], image)
    };
    let staging = |name: &str, tags: &[&str], image| {
        Served::new(&format!("k8s-staging-cri-tools/{name}"), tags, image)
    };
    let marked = |name: &str| {
        let mark = Layer::of(&[Entry::file(&format!("{name}.txt"), "")]);
        list(&[&busybox, &mark]).build()
    };
    let nginx = nginx_layer(80)?;
    let hostnet = nginx_layer(12003)?;
    let groups = Layer::of(&[
        Entry::file(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\n",
        ),
        Entry::file(
            "etc/group",
            "root:x:0:\ngroup-defined-in-image:x:50000:default-user\n",
        ),
    ]);
    let nnp = debian::compiled("c-nonewprivs", NNP)?;
    let nnp = Layer::of(&[Entry::program("nnp", nnp).mode(0o4755)]);
    let pause = Layer::of(&[Entry::program("pause", debian::compiled("c-pause", PAUSE)?)]);
    let paused = |label| {
        let image = list(&[&pause])
            .set("Cmd", Value::Null)
            .entrypoint(&["/pause"]);
        image.user("65535:65535").label("testkit", label).build()
    };
    let web = |layers: &[&Layer]| {
        list(layers)
            .cmd(&["nginx", "-g", "daemon off;"])
            .set("StopSignal", json!("SIGQUIT"))
    };
    let (tag_one, tag_all) = (marked("tag-test"), marked("tag-all"));
    let hostnet = Builder::new(Flavour::Docker, [busybox.clone(), nginx.clone(), hostnet])
        .cmd(&["nginx", "-g", "daemon off;"])
        .set("StopSignal", json!("SIGQUIT"));
    Ok(vec![
        e2e("busybox", "1.29-2", list(&[&busybox]).build()),
        e2e("nginx", "1.14-2", web(&[&busybox, &nginx]).build()),
        e2e(
            "httpd",
            "2.4.39-4",
            list(&[&busybox, &httpd_layer()])
                .cmd(&["/bin/serve"])
                .build(),
        ),
        e2e(
            "nonewprivs",
            "1.3",
            list(&[&busybox, &nnp])
                .set("Cmd", Value::Null)
                .entrypoint(&["/nnp"])
                .build(),
        ),
        staging("hostnet-nginx-amd64", &["latest"], hostnet.build()),
        staging(
            "test-image-user-uid",
            &["latest"],
            list(&[&busybox]).user("1002").build(),
        ),
        staging(
            "test-image-user-username",
            &["latest"],
            list(&[&busybox]).user("www-data").build(),
        ),
        staging(
            "test-image-user-uid-group",
            &["latest"],
            list(&[&busybox]).user("1003:1004").build(),
        ),
        staging(
            "test-image-user-username-group",
            &["latest"],
            list(&[&busybox]).user("www-data:1004").build(),
        ),
        staging(
            "test-image-predefined-group",
            &["latest"],
            list(&[&busybox, &groups]).user("1000").build(),
        ),
        staging("test-image-1", &["latest"], marked("one")),
        staging("test-image-2", &["latest"], marked("two")),
        staging("test-image-3", &["latest"], marked("three")),
        staging("test-image-latest", &["latest"], marked("latest")),
        staging("test-image-tag", &["test"], tag_one),
        staging("test-image-tag", &["all"], tag_all),
        staging("test-image-tags", &["1", "2", "3"], marked("tags")),
        staging("test-image-digest", &[], marked("digest")),
        Served::new("pause", &["3.9"], paused("3.9")),
        Served::new("pause", &["3.10"], paused("3.10")),
    ])
}

/// Prints the effective user: with `no_new_privs` the set-user-id bit has no effect.
const NNP: &str = "#include <stdio.h>\n#include <unistd.h>\n\
    int main(void) { printf(\"Effective uid: %d\\n\", (int)geteuid()); return 0; }\n";

/// Waits for a signal; a PID 1 without a handler would never see SIGTERM.
const PAUSE: &str = "#include <signal.h>\n#include <unistd.h>\n\
    static void leave(int sig) { (void)sig; _exit(0); }\n\
    int main(void) { signal(SIGTERM, leave); signal(SIGINT, leave); for (;;) pause(); }\n";

/// nginx as root on `port`, its own configuration, logs on stderr.
fn nginx_layer(port: u16) -> io::Result<Layer> {
    let packages = [
        "nginx",
        "libc6",
        "libcrypt1",
        "libpcre2-8-0",
        "libssl3t64|libssl3",
        "zlib1g",
    ];
    let root = debian::unpacked("debian-nginx", &packages)?;
    let config = format!(
        "user root;\nworker_processes 1;\npid /var/run/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; server {{ listen {port}; root /usr/share/nginx/html; }} }}\n"
    );
    let mut entries = vec![
        Entry::dir("etc/nginx"),
        Entry::file("etc/nginx/nginx.conf", config),
        Entry::dir("usr/share"),
        Entry::dir("usr/share/nginx"),
        Entry::dir("usr/share/nginx/html"),
        Entry::file("usr/share/nginx/html/index.html", "nginx of the testkit\n"),
        Entry::dir("var/lib"),
        Entry::dir("var/lib/nginx"),
        Entry::dir("var/log/nginx"),
    ];
    entries.extend(debian::program(&root, "sbin/nginx", "usr/sbin/nginx")?);
    Ok(Layer::of(&entries))
}

/// A web server whose log says its name, as critest expects of httpd.
fn httpd_layer() -> Layer {
    let serve = "#!/bin/sh\necho 'httpd: serving /www on port 80'\n\
        exec busybox httpd -f -p 80 -h /www\n";
    Layer::of(&[
        Entry::dir("www"),
        Entry::file("www/index.html", "httpd of the testkit\n"),
        Entry::program("bin/serve", serve),
    ])
}

/// The layers of the image for the pull benchmark: Debian packages with many files, or large ones.
const BIG: [&[&str]; 9] = [
    &["libc6", "bash", "coreutils", "perl-base", "tzdata"],
    &["linux-libc-dev", "python3-numpy"],
    &["python3-scipy"],
    &["python3-sympy", "python3-django"],
    &["git", "vim-runtime"],
    &["ansible"],
    &["locales", "iso-codes", "manpages-dev"],
    &["cmake", "cmake-data", "python3-botocore"],
    &["awscli"],
];

/// An image of nine gzip layers, some 30,000 files and 700 MB, with whiteouts in the last layer.
///
/// Made once (minutes), then read from the cache.
///
/// # Errors
/// apt or dpkg-deb failed, or the disk is full.
pub fn many_layers() -> io::Result<Served> {
    let dir = cache::folder("big-image", |dir| {
        let mut layers = Vec::new();
        for (i, packages) in BIG.iter().enumerate() {
            layers.push(big_layer(dir, i, packages)?);
        }
        fs::write(dir.join("layers.json"), Value::from(layers).to_string())
    })?;
    let layers: Vec<Value> = serde_json::from_slice(&fs::read(dir.join("layers.json"))?)?;
    let layers: Option<Vec<Layer>> = layers.iter().map(|l| read_layer(&dir, l)).collect();
    let layers = layers.ok_or_else(|| io::Error::other(format!("remove {}", dir.display())))?;
    let image = Builder::new(Flavour::Oci, layers).cmd(&["bash"]).build();
    Ok(Served::new("bench/big", &["gzip"], image))
}

fn big_layer(dir: &Path, i: usize, packages: &[&str]) -> io::Result<Value> {
    let root = debian::unpacked(&format!("debian-big-{i}"), packages)?;
    let file = dir.join(format!("{i}.tar.gz"));
    let mut layer = LayerFile::create(&file)?;
    let mut entries = debian::tree(&root)?;
    if i + 1 == BIG.len() {
        entries.extend(["a2p", "git"].map(|n| Entry::whiteout(&format!("usr/bin/{n}"))));
    }
    for entry in &entries {
        layer.entry(entry)?;
    }
    let (files, bytes) = debian::weight(&entries);
    let (diff_id, digest, size) = layer.finish()?;
    fs::remove_dir_all(root.parent().unwrap_or(&root))?;
    let name = format!("{i}.tar.gz");
    Ok(json!({
        "file": name, "diff_id": diff_id, "digest": digest, "size": size,
        "files": files, "bytes": bytes,
    }))
}

fn read_layer(dir: &Path, v: &Value) -> Option<Layer> {
    let text = |key: &str| v[key].as_str().map(String::from);
    let data = Data::File(dir.join(text("file")?));
    let blob = Blob {
        digest: text("digest")?,
        size: v["size"].as_u64()?,
        data,
    };
    Some(Layer {
        diff_id: text("diff_id")?,
        blob,
        packing: Packing::Gzip,
    })
}

/// Manifest bytes that are no manifest, under the media type of one.
pub fn broken_manifest(text: &str) -> Image {
    let media_type = "application/vnd.oci.image.manifest.v1+json".into();
    let top = Manifest {
        media_type,
        blob: Blob::new(text.as_bytes().to_vec()),
    };
    Image {
        top,
        children: Vec::new(),
        blobs: Vec::new(),
    }
}
