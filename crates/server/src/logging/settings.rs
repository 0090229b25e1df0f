//! LogSettings: what Triton calls the settings of the log, told and changed while the server runs.

use std::collections::HashMap;

use sconce_engine::text::quote;
use sconce_proto::inference::{
    LogSettingsRequest, LogSettingsResponse,
    log_settings_request::{SettingValue, setting_value::ParameterChoice},
    log_settings_response,
};
use tonic::Status;

use super::{Logs, levels::Switches};

/// What may be set.
const NAMES: [&str; 6] =
    ["log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"];

/// What a line of the log looks like, in the words of the setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// As `--log-format` says.
    #[default]
    Default,
    /// Text: its times are of ISO 8601 anyway.
    Iso8601,
    Text,
    Json,
}

impl Format {
    const ALL: [Self; 4] = [Self::Default, Self::Iso8601, Self::Text, Self::Json];

    fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Iso8601 => "ISO8601",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// All that can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) switches: Switches,
    pub(crate) format: Format,
}

type Answer<T> = Result<T, Box<Status>>;

fn refused(why: String) -> Box<Status> {
    Box::new(Status::invalid_argument(why))
}

impl Logs {
    /// Changes what the request names, all of it or nothing, and tells how everything is set then.
    ///
    /// # Errors
    /// A setting that there is not, that cannot be changed, or whose value is not one.
    pub(crate) fn update(&self, request: &LogSettingsRequest) -> Answer<LogSettingsResponse> {
        let mut settings = Ok(());
        let now = self.change(|now| match changed(now, &request.settings) {
            Ok(new) => new,
            Err(refusal) => {
                settings = Err(refusal);
                now
            }
        });
        settings.map(|()| told(now))
    }
}

/// The settings with what is said.
fn changed(mut settings: Settings, said: &HashMap<String, SettingValue>) -> Answer<Settings> {
    if let Some(unknown) = said.keys().filter(|name| !NAMES.contains(&name.as_str())).min() {
        return Err(refused(format!(
            "there is no log setting '{}': {} are served",
            quote(unknown),
            NAMES.join(", ")
        )));
    }
    let choice = |name: &str| said.get(name).map(|value| value.parameter_choice.as_ref());
    match choice("log_file") {
        // As it is.
        None => {}
        Some(Some(ParameterChoice::StringParam(file))) if file.is_empty() => {}
        Some(_) => {
            return Err(refused(
                "log file location can not be updated through network protocol: 'log_file' stays empty, the log goes to standard error"
                    .to_owned(),
            ));
        }
    }
    let Switches { info, warning, error, verbose } = &mut settings.switches;
    for (name, switch) in [("log_info", info), ("log_warning", warning), ("log_error", error)] {
        match choice(name) {
            None => {}
            Some(Some(ParameterChoice::BoolParam(on))) => *switch = *on,
            Some(_) => return Err(refused(format!("expect boolean for '{name}', in bool_param"))),
        }
    }
    match choice("log_verbose_level") {
        None => {}
        Some(Some(ParameterChoice::Uint32Param(level))) => *verbose = *level,
        Some(_) => {
            return Err(refused("expect int32 for 'log_verbose_level', from 0, in uint32_param".to_owned()));
        }
    }
    match choice("log_format") {
        None => {}
        Some(Some(ParameterChoice::StringParam(text))) => {
            let format = Format::ALL.into_iter().find(|format| format.name() == text);
            settings.format = format.ok_or_else(|| {
                refused(format!(
                    "invalid argument for log_format, got: '{}'; {} are served",
                    quote(text),
                    Format::ALL.map(Format::name).join(", ")
                ))
            })?;
        }
        Some(_) => return Err(refused("expect string for 'log_format', in string_param".to_owned())),
    }
    Ok(settings)
}

fn told(settings: Settings) -> LogSettingsResponse {
    use log_settings_response::{SettingValue, setting_value::ParameterChoice::*};

    let Settings { switches: Switches { info, warning, error, verbose }, format } = settings;
    let values = [
        StringParam(String::new()),
        BoolParam(info),
        BoolParam(warning),
        BoolParam(error),
        Uint32Param(verbose),
        StringParam(format.name().to_owned()),
    ];
    let value = |choice| SettingValue { parameter_choice: Some(choice) };
    let settings = NAMES.into_iter().zip(values);
    LogSettingsResponse {
        settings: settings.map(|(name, choice)| (name.to_owned(), value(choice))).collect(),
    }
}

impl std::fmt::Display for Settings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { switches: Switches { info, warning, error, verbose }, format } = self;
        write!(
            formatter,
            "log_info {info}, log_warning {warning}, log_error {error}, log_verbose_level {verbose}, log_format {}",
            format.name()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, choice: Option<ParameterChoice>) -> Answer<Settings> {
        let switches = Switches { info: true, warning: true, error: true, verbose: 0 };
        let said = HashMap::from([(name.to_owned(), SettingValue { parameter_choice: choice })]);
        changed(Settings { switches, format: Format::Default }, &said)
    }

    #[test]
    fn what_cannot_be_set_is_refused_by_its_name() {
        let text = |text: &str| Some(ParameterChoice::StringParam(text.to_owned()));
        for (name, choice, parts) in [
            ("log_file", text("x.log"), &["'log_file'", "can not be updated through network protocol"][..]),
            ("log_file", None, &["'log_file'"]),
            ("log_info", text("true"), &["expect boolean for 'log_info'"]),
            ("log_warning", None, &["expect boolean for 'log_warning'"]),
            ("log_error", Some(ParameterChoice::Uint32Param(1)), &["expect boolean for 'log_error'"]),
            ("log_verbose_level", Some(ParameterChoice::BoolParam(true)), &["'log_verbose_level'"]),
            ("log_format", Some(ParameterChoice::BoolParam(true)), &["expect string for 'log_format'"]),
            ("log_format", text("xml\n"), &["log_format", "'xml\\n'", "default, ISO8601, text, json"]),
            ("log_warnings\n", text(""), &["'log_warnings\\n'", "log_warning,"]),
        ] {
            let refused = with(name, choice).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            for part in parts {
                assert!(refused.message().contains(part), "{part:?} is not in {}", refused.message());
            }
        }
        assert!(with("log_file", text("")).is_ok());
    }

    #[test]
    fn what_can_be_set_is_told_back() {
        let changed = with("log_verbose_level", Some(ParameterChoice::Uint32Param(7))).unwrap();
        assert_eq!(changed.switches.verbose, 7);
        for format in Format::ALL {
            let choice = Some(ParameterChoice::StringParam(format.name().to_owned()));
            assert_eq!(with("log_format", choice).unwrap().format, format);
        }
        let answer = told(changed);
        assert_eq!(answer.settings.len(), NAMES.len());
        let level = answer.settings["log_verbose_level"].parameter_choice.clone();
        assert_eq!(level, Some(log_settings_response::setting_value::ParameterChoice::Uint32Param(7)));
    }
}
