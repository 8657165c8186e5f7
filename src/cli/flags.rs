//! kube-proxy's flags, made from the table of the configuration's reference.

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::Value;

use crate::config::file::KubeProxyConfiguration;
use crate::config::merge::Given;
use crate::config::reference::{Entry, Kind, TABLE, Topic};

/// The flags that were given.
#[derive(Clone, Debug, Default)]
pub struct Flags(pub Given);

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let defaulted = serde_json::to_value(KubeProxyConfiguration::defaulted()).unwrap_or_default();
        let flags = TABLE.iter().filter(|entry| !entry.flag.is_empty()).map(|entry| arg(entry, &defaulted));
        command.disable_version_flag(true).args(flags)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Flags, clap::Error> {
        let mut flags = Flags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for entry in TABLE.iter().filter(|entry| !entry.flag.is_empty()) {
            for value in matches.get_many::<Value>(entry.flag).into_iter().flatten() {
                self.0.add(entry, value.clone());
            }
        }
        Ok(())
    }
}

fn arg(entry: &'static Entry, defaulted: &Value) -> Arg {
    let default = match entry.flag_default(defaulted) {
        Value::String(text) if !text.is_empty() => format!(" [default: {text}]"),
        number @ Value::Number(_) => format!(" [default: {number}]"),
        _ => String::new(),
    };
    let kind = entry.kind;
    let arg = Arg::new(entry.flag)
        .long(entry.flag)
        .help(format!("{}{default}", entry.text.trim_end_matches('.')))
        .help_heading(entry.topic.heading())
        .hide(entry.is_hidden())
        // All occurrences are kept: lists and gates add up, for the rest the last one counts.
        .action(ArgAction::Append)
        .allow_hyphen_values(true)
        .value_parser(ValueParser::from(move |text: &str| kind.parse(text)))
        .value_name(match kind {
            Kind::Bool => "BOOL",
            Kind::Int | Kind::Float => "NUMBER",
            Kind::Text | Kind::Structure => "VALUE",
            Kind::Duration => "DURATION",
            Kind::List => "LIST",
            Kind::Gates => "NAME=BOOL,...",
            Kind::VModules => "PATTERN=NUMBER,...",
        });
    let arg = match entry.flag {
        "v" => arg.short('v'),
        "hostname-override" => arg.visible_alias("node-name"),
        "proxy-mode" => arg.visible_alias("mode"),
        "version" => arg.short('V'),
        _ => arg,
    };
    match kind {
        Kind::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg.num_args(1),
    }
}

/// For commands that print or compare rules.
pub fn hide_what_forwarding_does_not_need(arg: Arg) -> Arg {
    let entry = TABLE.iter().find(|entry| entry.flag == arg.get_id().as_str());
    let flags = ["hostname-override", "config", "version", "kubeconfig", "master"];
    let needed = |e: &Entry| e.topic == Topic::Traffic || flags.contains(&e.flag);
    let of_agents = ["takeover", "hold_connections"].contains(&arg.get_id().as_str());
    let hide = of_agents || entry.is_some_and(|e| e.is_hidden() || !needed(e));
    arg.hide(hide)
}
