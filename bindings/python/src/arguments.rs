//! Python arguments as the engine takes them.
//!
//! A value of the wrong type is a `TypeError`, as Python's own functions have it; one of the right type without
//! meaning is `InvalidArgument` and names the argument.

use std::time::Duration;

use polylock::{Acquire, Error, Target};
use pyo3::{
    exceptions::{PyOverflowError, PyTypeError},
    prelude::*,
    types::{PyBool, PyList, PyString, PyTuple},
};

use crate::boundary::to_python;

/// Text of `argument`. A `str` can hold what is not UTF-8 (lone surrogates); the engine's names cannot.
pub(crate) fn text(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    let Ok(value) = value.cast::<PyString>() else {
        return Err(wrong_type(argument, "str", value));
    };
    match value.to_str() {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(to_python(Error::invalid(argument, "must be UTF-8"))),
    }
}

/// Seconds as a float or an int.
pub(crate) fn seconds(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let number = real(argument, SECONDS, value)?;
    polylock::host::duration(argument, number, Duration::from_secs(1)).map_err(to_python)
}

/// Seconds, or `None`.
pub(crate) fn optional_seconds(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Option<Duration>> {
    if value.is_none() { Ok(None) } else { seconds(argument, value).map(Some) }
}

/// A float or an int.
pub(crate) fn number(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    real(argument, "a number", value)
}

/// What a time has to be: a `timedelta`, for example, is not.
const SECONDS: &str = "a number of seconds";

fn real(argument: &'static str, wanted: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    no_flag(argument, wanted, value)?;
    value.extract::<f64>().map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            to_python(Error::invalid(argument, "is too large"))
        } else {
            wrong_type(argument, wanted, value)
        }
    })
}

/// An `int` that is not negative.
pub(crate) fn count(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    no_flag(argument, "int", value)?;
    let number = match value.extract::<i64>() {
        Ok(number) => usize::try_from(number).map_err(|_| format!("must not be negative: {number}")),
        // Negative or not: it is shown as it was given.
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => Err(format!("is out of range: {value}")),
        Err(_) => return Err(wrong_type(argument, "int", value)),
    };
    number.map_err(|why| to_python(Error::invalid(argument, why)))
}

/// To Python a `bool` is an `int`: `acquire("name", True)` would be a lock of one second.
pub(crate) fn no_flag(argument: &str, wanted: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
    if value.is_instance_of::<PyBool>() { Err(wrong_type(argument, wanted, value)) } else { Ok(()) }
}

fn flag(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    value.extract::<bool>().map_err(|_| wrong_type(argument, "bool", value))
}

fn wrong_type(argument: &str, wanted: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let given = value.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string());
    PyTypeError::new_err(format!("{argument} must be {wanted}, not {given}"))
}

/// What to acquire: a name alone or several of them exclusively (`mode` is `None`), or a name shared (`"shared"`)
/// or as one of so many permits (a number).
pub(crate) fn target(resource: &Bound<'_, PyAny>, mode: &Bound<'_, PyAny>) -> PyResult<Target> {
    if mode.is_none() {
        if resource.is_instance_of::<PyList>() || resource.is_instance_of::<PyTuple>() {
            let names = resource.try_iter()?.map(|name| text("names", &name?)).collect::<PyResult<Vec<_>>>()?;
            return Ok(Target::all(names));
        }
        return Ok(text("name", resource)?.into());
    }
    let name = text("name", resource)?;
    if mode.is_instance_of::<PyString>() {
        return Ok(Target::shared(&name));
    }
    // What is too much stays so: the engine says what is allowed.
    Ok(Target::permit(&name, u32::try_from(count("of", mode)?).unwrap_or(u32::MAX)))
}

/// How to acquire, from Python's arguments. `wait`: `None` and infinity wait for ever, 0 tries once.
pub(crate) fn options(
    ttl: &Bound<'_, PyAny>,
    wait: &Bound<'_, PyAny>,
    auto_extend: &Bound<'_, PyAny>,
    max_hold: &Bound<'_, PyAny>,
    label: &Bound<'_, PyAny>,
    fair: &Bound<'_, PyAny>,
) -> PyResult<Acquire> {
    let mut options = Acquire::ttl(seconds("ttl", ttl)?).auto_extend(flag("auto_extend", auto_extend)?);
    options = options.fair(flag("fair", fair)?);
    if !wait.is_none() && real("wait", SECONDS, wait)? != f64::INFINITY {
        options = match seconds("wait", wait)? {
            Duration::ZERO => options.no_wait(),
            wait => options.wait(wait),
        };
    }
    if let Some(max_hold) = optional_seconds("max_hold", max_hold)? {
        options = options.max_hold(max_hold);
    }
    if !label.is_none() {
        options = options.label(&text("label", label)?);
    }
    Ok(options)
}
