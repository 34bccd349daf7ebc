//! The command line: every command, flag and help text. It owns what may be said; what it means is
//! elsewhere. A secret never is an argument.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where everything is kept unless something else is said.
pub const DEFAULT_DATA: &str = "./chancery-data";

/// An XMPP server for organisations that must answer for what was said.
#[derive(Debug, Parser)]
#[command(name = "chancery", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    pub command: Command,
}

/// Which installation a command is about.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// Configuration file (TOML); everything has a default without one
    #[arg(long, global = true, value_name = "FILE", env = "CHANCERY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data directory [default: the configuration's, else ./chancery-data]
    #[arg(long, global = true, value_name = "DIR", env = "CHANCERY_DATA")]
    pub data: Option<PathBuf>,
    /// Hosted domain; repeat for several, the first is the default one [default: localhost]
    #[arg(long = "domain", global = true, value_name = "DOMAIN")]
    pub domains: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server, in the foreground
    Serve(Serve),
    /// Run a server with four accounts in two walled groups, to try things out
    Demo(Demo),
    /// Accounts
    #[command(subcommand)]
    User(User),
    /// Groups of accounts, which walls are built between
    #[command(subcommand)]
    Group(Group),
    /// Rosters
    #[command(subcommand)]
    Roster(Roster),
    /// The configuration
    #[command(subcommand)]
    Config(Config),
    /// Who may write to whom
    #[command(subcommand)]
    Policy(Policy),
    /// The evidence log
    #[command(subcommand)]
    Evidence(Evidence),
    /// Check an exported log, offline
    ///
    /// Exit codes: 0 clean; 1 tampered, the first bad record is named; 2 incomplete; 3 cannot decide.
    Verify(Verify),
    /// What clients have to trust
    #[command(subcommand)]
    Trust(Trust),
    /// Make the certificates that `[internal] directory` would make at the first start
    #[command(name = "internal-certs", hide = true)]
    InternalCerts { dir: PathBuf },
}

#[derive(Debug, Clone, Default, Args)]
pub struct Serve {
    /// Services that this process runs, e.g. gateway,presence [default: all]
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub roles: Vec<String>,
    /// Address for clients with STARTTLS, or `off` [default: [::]:5222]
    #[arg(long, value_name = "ADDR")]
    pub c2s: Option<String>,
    /// Address for clients with direct TLS, or `off` [default: [::]:5223]
    #[arg(long, value_name = "ADDR")]
    pub c2s_tls: Option<String>,
    /// Address for health and metrics, or `off` [default: 127.0.0.1:5280]
    #[arg(long, value_name = "ADDR")]
    pub ops: Option<String>,
    /// Address for the other processes [default: what [services] says of the roles]
    #[arg(long, value_name = "ADDR")]
    pub internal: Option<String>,
    /// This process's name among the others [default: the configuration's, else $HOSTNAME]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, Default, Args)]
pub struct Demo {
    /// Address for clients with STARTTLS [default: 127.0.0.1:5222, or the next port that is free]
    #[arg(long, value_name = "ADDR")]
    pub c2s: Option<String>,
    /// Address for clients with direct TLS [default: 127.0.0.1:5223, or the next port that is free]
    #[arg(long, value_name = "ADDR")]
    pub c2s_tls: Option<String>,
    /// Address for health and metrics [default: 127.0.0.1:5280, or the next port that is free]
    #[arg(long, value_name = "ADDR")]
    pub ops: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum User {
    /// Add an account; the password is asked for, or read as one line from standard input
    Add { jid: String },
    /// List accounts
    List,
    /// Set a password, asked for or read from standard input; live sessions end
    Passwd { jid: String },
    /// Refuse logins and end live sessions
    Disable { jid: String },
    /// Allow logins again
    Enable { jid: String },
    /// Remove an account with its roster, vCard, private XML and undelivered messages; evidence stays
    Delete { jid: String },
    /// Add many accounts from a file, or - for standard input
    ///
    /// One account a line: `JID PASSWORD`, the password being the rest of the line; or ready SCRAM
    /// keys, so that nobody's password is needed:
    ///
    /// JID {SCRAM-SHA-256}ITERATIONS,SALT,STOREDKEY,SERVERKEY [{SCRAM-SHA-1}...]
    ///
    /// with salt and keys in base64. Empty lines and lines that begin with # are passed over.
    #[command(verbatim_doc_comment)]
    Import { file: PathBuf },
}

#[derive(Debug, Subcommand)]
pub enum Group {
    /// Make a group
    Create { group: String },
    /// Put accounts into a group
    Add {
        group: String,
        #[arg(required = true, value_name = "JID")]
        members: Vec<String>,
    },
    /// Take accounts out of a group
    Remove {
        group: String,
        #[arg(required = true, value_name = "JID")]
        members: Vec<String>,
    },
    /// Let the members of a group see each other in their rosters
    Show {
        group: String,
        /// What rosters call it; the group's own name when absent
        #[arg(long)]
        label: Option<String>,
    },
    /// Take a group out of rosters
    Hide { group: String },
    /// Remove a group
    Delete { group: String },
    /// List groups and their members
    List,
}

#[derive(Debug, Subcommand)]
pub enum Roster {
    /// Write an item into somebody's roster, as an administrator
    Put {
        /// Whose roster
        owner: String,
        /// Who is put into it
        contact: String,
        /// The subscription state that it gets
        #[arg(long, value_enum)]
        subscription: Subscription,
        /// The name that the owner sees
        #[arg(long, default_value = "")]
        name: String,
        /// A roster group; repeat for several
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
    },
}

/// Subscription states as RFC 6121 names them; `remove` takes the item out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Subscription {
    None,
    To,
    From,
    Both,
    Remove,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// List every problem of the configuration, with file and line
    Check(Serve),
    /// Print the configuration as it takes effect, defaults included
    Show(Serve),
}

#[derive(Debug, Subcommand)]
pub enum Policy {
    /// List every problem of a policy file, or - for standard input
    Check { file: PathBuf },
    /// Put a policy file (or - for standard input) in force; returns when every gateway follows it
    Apply { file: PathBuf },
    /// Print the policy in force, or an earlier version
    Show {
        #[arg(long, value_name = "NUMBER")]
        version: Option<u64>,
    },
    /// Say whether FROM may write to TO, and which rule decides
    Explain { from: String, to: String },
}

#[derive(Debug, Subcommand)]
pub enum Evidence {
    /// Export the log of a domain as JSON lines with a signed manifest; is itself recorded
    Export {
        /// First record
        #[arg(long, value_name = "N", default_value_t = 0)]
        first: u64,
        /// Last record [default: the newest]
        #[arg(long, value_name = "N", default_value_t = 0)]
        last: u64,
        /// Add what is sealed, in clear text
        #[arg(long)]
        decrypt: bool,
        /// Where to, or - for standard output
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Print the public key that exports of a domain are signed with
    Key,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// The export
    pub file: PathBuf,
    /// The public key: a file that `evidence key` wrote, or its text (ed25519:...)
    #[arg(long, value_name = "PUB")]
    pub key: String,
}

#[derive(Debug, Subcommand)]
pub enum Trust {
    /// Print the local authority's certificate, its place and its fingerprint
    Show,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_takes_a_password() {
        fn names(command: &clap::Command, found: &mut Vec<String>) {
            found.extend(command.get_arguments().map(|a| a.get_id().to_string()));
            command.get_subcommands().for_each(|c| names(c, found));
        }
        let mut found = Vec::new();
        names(&Cli::command(), &mut found);
        assert!(found.len() > 20);
        assert!(
            !found
                .iter()
                .any(|name| name.contains("pass") || name.contains("secret"))
        );
    }

    #[test]
    fn the_place_may_be_said_after_the_command() {
        let cli = Cli::parse_from(["chancery", "user", "add", "a@b", "--data", "/x"]);
        assert_eq!(cli.place.data, Some(PathBuf::from("/x")));
    }
}
