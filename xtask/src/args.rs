//! Arguments: flags and options are taken by name, whatever is left is positional.

use crate::{Error, Result};

/// The arguments that no one has taken yet.
pub(crate) struct Args(Vec<String>);

impl Args {
    pub(crate) fn new(args: impl IntoIterator<Item = String>) -> Self {
        Args(args.into_iter().collect())
    }

    /// Takes the first argument, whatever it is.
    pub(crate) fn command(&mut self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// Takes `--name`; true if it was there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|a| a != name);
        self.0.len() < before
    }

    /// Takes `--name VALUE` or `--name=VALUE`.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>> {
        for i in 0..self.0.len() {
            if self.0[i] == name {
                if self.0.get(i + 1).is_none_or(|v| v.starts_with("--")) {
                    return Err(Error::Usage(format!("expected a value after `{name}` but found none")));
                }
                self.0.remove(i);
                return Ok(Some(self.0.remove(i)));
            }
            if let Some(value) = self.0[i].strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                let value = value.to_string();
                self.0.remove(i);
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// As [`Args::value`], for a port.
    pub(crate) fn port(&mut self) -> Result<Option<u16>> {
        self.value("--port")?
            .map(|v| v.parse().map_err(|_| Error::Usage(format!("expected a port (0 to 65535) but found `{v}`"))))
            .transpose()
    }

    /// The positional arguments; anything that still looks like an option is refused.
    pub(crate) fn positional(self) -> Result<Vec<String>> {
        match self.0.iter().find(|a| a.starts_with('-')) {
            Some(unknown) => Err(Error::Usage(format!("expected no option `{unknown}`\ntry --help"))),
            None => Ok(self.0),
        }
    }

    /// For commands without positional arguments.
    pub(crate) fn finish(self) -> Result<()> {
        match self.positional()?.first() {
            Some(extra) => Err(Error::Usage(format!("expected no more arguments but found `{extra}`\ntry --help"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(line.split_whitespace().map(String::from))
    }

    #[test]
    fn options_are_taken_in_both_spellings_and_the_rest_is_positional() {
        let mut a = args("dir --port 81 --quick --json=out.json");
        assert_eq!(a.port().unwrap(), Some(81));
        assert_eq!(a.value("--json").unwrap().as_deref(), Some("out.json"));
        assert!(a.flag("--quick") && !a.flag("--quick"));
        assert_eq!(a.positional().unwrap(), ["dir"]);
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        assert_eq!(args("--port").port().unwrap_err().code(), 2);
        assert_eq!(args("--port 65536").port().unwrap_err().code(), 2);
        assert_eq!(args("--json --quick").value("--json").unwrap_err().code(), 2);
        assert!(args("--prot 81").positional().unwrap_err().to_string().contains("`--prot`"));
        assert!(args("extra").finish().unwrap_err().to_string().contains("`extra`"));
    }
}
