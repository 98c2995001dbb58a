//! `WWW-Authenticate`: one or several challenges in one value (RFC 7235, 4.1).

use crate::limits::{CHALLENGE_PARAMETERS_MAX, CHALLENGES_MAX};

/// One challenge, its scheme and its parameters' names in lower case.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Reads what can be read; what is malformed is left out.
pub(super) fn parse(value: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            // Neither a name nor a separator: skip one character and go on, so that the loop ends.
            let mut characters = rest.chars();
            if characters.next().is_none() {
                return found;
            }
            rest = characters.as_str();
            continue;
        }
        let (word, after) = rest.split_at(end);
        let behind = after.trim_start_matches([' ', '\t']);
        if let Some(value) = behind.strip_prefix('=') {
            let (value, tail) = take_value(value.trim_start_matches([' ', '\t']));
            rest = tail;
            if let Some(challenge) = found.last_mut()
                && challenge.parameters.len() < CHALLENGE_PARAMETERS_MAX
            {
                challenge
                    .parameters
                    .push((word.to_ascii_lowercase(), value));
            }
        } else {
            rest = after;
            if found.len() == CHALLENGES_MAX {
                return found;
            }
            found.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: Vec::new(),
            });
        }
    }
}

/// A token or a quoted string, and what follows it.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // Lenient: unquoted URLs are seen in the wild.
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => break,
            '\\' => value.extend(characters.next()),
            c => value.push(c),
        }
    }
    (value, characters.as_str())
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_quotes_do_not_separate() {
        let found =
            parse(r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].scheme, "bearer");
        assert_eq!(found[0].get("realm"), Some("https://a/t"));
        assert_eq!(found[0].get("scope"), Some("repository:a/b:pull,push"));
    }

    #[test]
    fn several_challenges_may_share_a_header() {
        let found = parse(
            r#"Negotiate, BASIC realm="a \"b\", c" , Bearer Realm = "x",error=invalid_token"#,
        );
        let schemes: Vec<&str> = found.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(found[1].get("realm"), Some(r#"a "b", c"#));
        assert_eq!(found[2].get("realm"), Some("x"));
        assert_eq!(found[2].get("error"), Some("invalid_token"));
    }

    proptest::proptest! {
        /// Whatever a server says: no panic, an end, and no more than the limits.
        #[test]
        fn any_header_is_read_within_the_limits(text in "[a-zB ,=\"\\\\\t(é]{0,200}") {
            let found = parse(&text);
            proptest::prop_assert!(found.len() <= CHALLENGES_MAX);
            let most = found.iter().map(|c| c.parameters.len()).max();
            proptest::prop_assert!(most.unwrap_or(0) <= CHALLENGE_PARAMETERS_MAX);
        }
    }

    #[test]
    fn nonsense_ends() {
        for text in [
            "",
            ",,,",
            "\"",
            "=\"",
            "Bearer realm=\"open",
            "((((",
            "Bearer a=,b=\"\\",
            "é",
        ] {
            let _found = parse(text);
        }
        assert_eq!(parse(&"a ".repeat(1000)).len(), CHALLENGES_MAX);
    }
}
