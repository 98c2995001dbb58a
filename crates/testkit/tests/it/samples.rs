//! The images that critest pulls, looked at before anybody runs them.

use std::collections::HashSet;

use wharf_testkit::samples;

#[test]
fn the_images_of_critest_are_the_same_each_time_and_differ_where_they_must() {
    let images = match samples::critest() {
        Ok(images) => images,
        Err(e) => {
            eprintln!("skipped: no Debian packages here: {e}");
            return;
        }
    };
    let again = samples::critest().unwrap();
    for (one, two) in images.iter().zip(&again) {
        assert_eq!(one.image.digest(), two.image.digest(), "{}", one.repository);
    }
    let digests: HashSet<&str> = images.iter().map(|i| i.image.digest()).collect();
    assert_eq!(digests.len(), images.len(), "two names have the same image");
    let lists = images
        .iter()
        .filter(|i| i.image.children.len() == 2)
        .count();
    assert_eq!(
        lists,
        images.len() - 1,
        "all but hostnet-nginx are lists of two platforms"
    );
}
