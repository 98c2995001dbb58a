//! A minute of churn with faults; `cargo xtask soak` is longer.

use std::time::Duration;

use wharf_testkit::soak::Soak;

/// How long requests and faults go on.
const LENGTH: Duration = Duration::from_secs(60);

#[test]
fn churn_with_faults_leaves_the_machine_as_it_was() {
    if !wharf_testkit::needs_root("churn_with_faults") {
        return;
    }
    let soak = Soak {
        seed: 1,
        length: LENGTH,
        clients: 3,
        programs: None,
    };
    let report = soak.run().unwrap();
    println!("{report}");
    assert_eq!(report.differences(), Vec::<String>::new());
    // Nothing is proved where nothing happened.
    let happened = |what: &str| report.faults.get(what).copied().unwrap_or(0) > 0;
    for what in ["daemon killed", "shim killed", "shim stopped for a while"] {
        assert!(happened(what), "{what}: {report}");
    }
    assert!(report.operations.values().sum::<u64>() > 100, "{report}");
}
