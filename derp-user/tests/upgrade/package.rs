//! The Debian package from its installation to its purge, on a Debian that has nothing of it.

use crate::{Host as _, machine::Machine};

/// The relay without anything of the Internet's.
const VARIABLES: &str = "DERP_DOMAIN=127.0.0.1\nDERP_CERT_MODE=manual\nDERP_STUN_PORT=3479\n";

fn process(machine: &Machine) -> String {
    let line = machine.run("systemctl show --property=MainPID derpd");
    let id = line.trim().trim_start_matches("MainPID=").to_owned();
    assert_ne!(id, "0", "it runs");
    id
}

#[test]
fn the_package_installs_serves_reloads_upgrades_and_leaves_nothing_behind() {
    const WHAT: &str = "the package on a clean Debian";
    let machine = match Machine::boot(None) {
        Ok(machine) => machine,
        Err(reason) => return println!("skipped: {WHAT}: {reason}"),
    };
    let said = machine.install_build(0);
    assert!(said.contains("set DERP_DOMAIN in /etc/default/derpd"), "{said}");
    machine.run("id derpd && derpd -version");
    for unit in ["derpd.service", "derpd.socket"] {
        assert_eq!(machine.try_run(&format!("systemctl is-enabled {unit}")).1, "disabled\n");
        assert_eq!(machine.try_run(&format!("systemctl is-active {unit}")).1, "inactive\n");
    }
    assert_eq!(machine.run("systemd-analyze verify --man=no derpd.service derpd.socket 2>&1"), "");

    // The settings are an administrator's, comments and all.
    let settings = format!("# Ours.\n{VARIABLES}");
    machine.configure(&settings, "[log]\nlevels = \"info\"\n");
    machine.run("systemctl enable --now derpd");
    it_serves_in_its_sandbox(&machine);
    it_reloads(&machine);

    let key = machine.run("cat /var/lib/derpd/derper.key");
    let before = process(&machine);
    machine.install_build(1);
    assert_ne!(process(&machine), before, "the upgrade has restarted it");
    machine.run("systemctl is-active derpd && systemctl is-enabled derpd");
    assert_eq!(machine.run("cat /etc/default/derpd"), settings);
    assert_eq!(machine.run("cat /var/lib/derpd/derper.key"), key);
    it_serves_in_its_sandbox(&machine);

    machine.run("dpkg --remove derpd");
    assert_eq!(machine.try_run("systemctl is-active derpd").1, "inactive\n");
    assert_eq!(machine.run("cat /etc/default/derpd"), settings);
    assert_eq!(machine.run("cat /var/lib/derpd/derper.key"), key);
    assert_eq!(machine.run("find /usr -name '*derpd*'"), "");
    // Who changes his mind finds everything as it was.
    machine.install_build(1);
    machine.run("systemctl enable --now derpd");
    assert_eq!(machine.run("cat /var/lib/derpd/derper.key"), key);
    it_serves_in_its_sandbox(&machine);

    machine.run("dpkg --purge derpd");
    let left = machine.run(
        "find / -xdev -name '*derpd*' -not -path '/proc/*' -not -path '/packages/*' -not -path '/run/*'",
    );
    assert_eq!(left, "");
    println!("{WHAT}: installed, reloaded, upgraded, removed, installed again, purged");
}

/// As its user, with the one right it was given, under the filter of the unit, and by its own health check.
fn it_serves_in_its_sandbox(machine: &Machine) {
    let health = "runuser -u derpd -- derpd healthcheck -hostname 127.0.0.1 -certmode manual \
                  -certdir /var/lib/derpd/certs -c /var/lib/derpd/derper.key -stun-port 3479";
    assert_eq!(machine.run(health), "0.0.0.0:443 serves\n".replace("0.0.0.0", "127.0.0.1"));
    let status = machine.run(&format!("cat /proc/{}/status", process(machine)));
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.trim().to_owned()
    };
    // Nothing is left of the capability once the ports are bound.
    assert_eq!(field("CapEff:"), "0000000000000000", "{status}");
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"), "{status}");
    let user = machine.run("id --user derpd");
    assert_eq!(field("Uid:").split('\t').next(), Some(user.trim()), "{status}");
    let files = machine.run("stat --format='%U %a' /var/lib/derpd /var/lib/derpd/derper.key");
    assert_eq!(files, "derpd 700\nderpd 600\n");
}

/// A reload changes what can be changed in the process that runs, and what cannot be used changes nothing.
fn it_reloads(machine: &Machine) {
    let before = process(machine);
    let reload = |file: &str, expected: &str| {
        machine.configure(&format!("# Ours.\n{VARIABLES}"), file);
        machine.run("systemctl reload derpd");
        machine.run(&format!(
            "for i in $(seq 300); do journalctl --unit=derpd | grep -q -F '{expected}' && exit; sleep 0.1; done; exit 1"
        ));
    };
    reload(
        "[log]\nlevels = \"info,derp_user::server=debug\"\n",
        "levels are info,derp_user::server=debug",
    );
    reload("[log]\nlevels = \"x=loud\"\n", "reload failed, nothing has changed");
    reload("", "log: levels are info");
    assert_eq!(process(machine), before, "no reload has restarted it");
}
