//! Environment variables that stand for flags, as the container images of derper have them.
//!
//! Every flag has one: `DERP_` and its name in capitals, with `_` for `-`. Four have further names, which those
//! images made usual. A flag on the command line and a key of the configuration file win over the variable; an empty
//! variable is none.

use clap::{Arg, ArgAction, Command};

use super::{
    UsageError,
    layers::{Given, Origin},
};

const PREFIX: &str = "DERP_";
/// Further names, by flag.
const USUAL: [(&str, &str); 5] = [
    ("a", "DERP_ADDR"),
    ("certdir", "DERP_CERT_DIR"),
    ("certmode", "DERP_CERT_MODE"),
    ("hostname", "DERP_DOMAIN"),
    // Of the image for relays without a domain name.
    ("hostname", "DERP_HOST"),
];
/// Images set this one to the version they were built from.
const NO_VARIABLE: [&str; 1] = ["version"];

/// Reads the variables of all flags that nobody else has decided.
///
/// # Errors
///
/// If two names of a flag have different values.
pub(super) fn read(
    command: &Command,
    is_decided: impl Fn(&str) -> bool,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Given>, UsageError> {
    let mut given = Vec::new();
    for argument in command.get_arguments() {
        let flag = argument.get_id().as_str();
        if is_decided(flag) {
            continue;
        }
        let set = names(flag).filter_map(|name| {
            let value = variable(&name).filter(|value| !value.is_empty())?;
            Some((name, value))
        });
        let set: Vec<_> = set.collect();
        if let Some((first, first_value)) = set.first()
            && let Some((second, second_value)) = set.iter().find(|(_, value)| value != first_value)
        {
            return Err(UsageError::InvalidVariable {
                variable: second.clone(),
                value: shown(flag, second_value),
                reason: format!("{first} has another value, and both are for -{flag}"),
            });
        }
        let Some((variable, value)) = set.into_iter().next() else { continue };
        given.push(Given {
            flag: flag.to_owned(),
            values: split(argument, &value).map(str::to_owned).collect(),
            origin: Origin::Variable(variable),
        });
    }
    Ok(given)
}

/// The names of the variable that stands for a flag, usual ones first.
pub fn names(flag: &str) -> impl Iterator<Item = String> {
    let usual = USUAL.iter().filter(move |(of, _)| *of == flag).map(|(_, name)| (*name).to_owned());
    let own = format!("{PREFIX}{}", flag.to_uppercase().replace('-', "_"));
    let has_any = !NO_VARIABLE.contains(&flag);
    usual.chain([own]).filter(move |_| has_any)
}

/// What may be shown of a flag's value.
pub(super) fn shown(flag: &str, value: &str) -> String {
    if super::arguments::SECRETS.contains(&flag) { "...".to_owned() } else { value.to_owned() }
}

/// A flag that may be given several times has a variable with commas.
fn split<'a>(argument: &Arg, value: &'a str) -> impl Iterator<Item = &'a str> {
    let is_list = matches!(argument.get_action(), ArgAction::Append);
    let separator = if is_list { ',' } else { '\0' };
    value.split(separator).map(str::trim).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, ffi::OsString};

    use clap::CommandFactory as _;

    use super::{
        super::{Invocation, Layers, Options, Surroundings, arguments::parse},
        *,
    };

    fn options(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Options, UsageError> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let surroundings = Surroundings { variable: &variable, ..Surroundings::nothing() };
        match parse(arguments.iter().map(OsString::from), &surroundings)? {
            Invocation::Run(options) => Ok(*options),
            Invocation::Help(_) => panic!("help"),
        }
    }

    #[test]
    fn the_variables_of_derpers_images_are_understood() {
        let variables = [
            ("DERP_DOMAIN", "relay.example.com"),
            ("DERP_CERT_MODE", "manual"),
            ("DERP_CERT_DIR", "/app/certs"),
            ("DERP_ADDR", ":8443"),
            ("DERP_HTTP_PORT", "-1"),
            ("DERP_STUN", "false"),
            ("DERP_STUN_PORT", "3479"),
            ("DERP_VERIFY_CLIENTS", "true"),
            ("DERP_VERIFY_CLIENT_URL", ""),
        ];
        let options = options(&[], &variables).unwrap();
        assert_eq!(options.hostname, "relay.example.com");
        assert_eq!(options.certmode, super::super::CertificateMode::Manual);
        assert_eq!(options.certdir.as_deref(), Some("/app/certs"));
        assert_eq!((options.a.as_str(), options.http_port), (":8443", -1));
        assert_eq!((options.stun, options.stun_port, options.verify_clients), (false, 3479, true));
        assert_eq!(options.verify_client_url, "");
        let domain = Origin::Variable("DERP_DOMAIN".to_owned());
        assert_eq!(options.layers.origin("hostname"), Some(&domain));
        assert_eq!(options.layers.origin("verify-client-url"), None);
        let without_domain = self::options(&[], &[("DERP_HOST", "192.0.2.1")]).unwrap();
        assert_eq!(without_domain.hostname, "192.0.2.1");
    }

    #[test]
    fn flags_win_over_variables_and_those_over_defaults() {
        let variables = [("DERP_STUN_PORT", "1"), ("DERP_XDP_INTERFACE", "eth0, eth1")];
        let from_variables = options(&[], &variables).unwrap();
        assert_eq!((from_variables.stun_port, from_variables.http_port), (1, 80));
        assert_eq!(from_variables.xdp_interface, ["eth0", "eth1"]);
        let with_flags = options(&["-stun-port=2", "-xdp-interface=eth2"], &variables).unwrap();
        assert_eq!(with_flags.stun_port, 2);
        assert_eq!(with_flags.layers.origin("stun-port"), Some(&Origin::Flag));
        assert_ne!(with_flags.layers, Layers::default());
        assert_eq!(with_flags.xdp_interface, ["eth2"]);
        // What a flag replaces does not matter.
        assert!(options(&["-stun-port=2"], &[("DERP_STUN_PORT", "x")]).is_ok());
    }

    #[test]
    fn faults_name_the_variable() {
        for (variables, expected) in [
            (
                &[("DERP_STUN_PORT", "tcp://10.0.0.1:443")][..],
                "DERP_STUN_PORT=\"tcp://10.0.0.1:443\": must be a port from 0 to 65535",
            ),
            (
                &[("DERP_CERT_MODE", "magic")],
                "DERP_CERT_MODE=\"magic\": must be one of manual, letsencrypt, gcp",
            ),
            (
                &[("DERP_DOMAIN", "a.example"), ("DERP_HOSTNAME", "b.example")],
                "DERP_HOSTNAME=\"b.example\": DERP_DOMAIN has another value, and both are for -hostname",
            ),
            (
                &[("DERP_HOST", "a.example"), ("DERP_HOSTNAME", "b.example")],
                "DERP_HOSTNAME=\"b.example\": DERP_HOST has another value, and both are for -hostname",
            ),
            (
                &[("DERP_ACME_EAB_KEY", "se!cret")],
                "DERP_ACME_EAB_KEY=\"...\": must be base64, with the URL alphabet or the usual one",
            ),
        ] {
            let error = options(&[], variables).unwrap_err().to_string();
            assert!(error.starts_with(expected.split(':').next().unwrap()), "{error}");
            if !expected.contains("base64") {
                assert_eq!(error, expected);
            }
            assert!(!error.contains("se!cret"), "{error}");
        }
    }

    #[test]
    fn every_flag_but_the_version_has_one_and_none_means_two_things() {
        let mut seen = BTreeMap::new();
        for argument in Options::command().get_arguments() {
            let flag = argument.get_id().to_string();
            assert_eq!(names(&flag).count() == 0, flag == "version", "{flag}");
            for name in names(&flag) {
                assert_eq!(seen.insert(name, flag.clone()), None, "{flag}");
            }
        }
        for taken in ["DERP_DEBUG_LOGS", "DERP_PROBER_DEBUG_LOGS", "DERP_VERSION"] {
            assert!(!seen.contains_key(taken), "{taken}");
        }
    }
}
