//! What C hands in and gets out: the only place where its pointers are followed.
//!
//! The methods here are for the parameters of exported functions. The header's conventions are what makes following
//! those sound: a pointer is NULL, or points at what its type says for the time of the call.

use std::{
    ffi::{CStr, c_char},
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use engine::{Error, Result};

/// Where an output goes; may be NULL.
pub(crate) trait Out<T> {
    /// The place, which C must have given.
    ///
    /// # Errors
    /// `InvalidArgument` naming `argument`.
    fn required(self, argument: &'static str) -> Result<Place<T>>;

    /// The place, if C wants the output.
    fn given(self) -> Option<Place<T>>;
}

/// Where an output goes, and C did give a place.
pub(crate) struct Place<T>(*mut T);

impl<T> Out<T> for *mut T {
    fn required(self, argument: &'static str) -> Result<Place<T>> {
        self.given().ok_or_else(|| Error::invalid(argument, "must not be NULL"))
    }

    fn given(self) -> Option<Place<T>> {
        (!self.is_null()).then_some(Place(self))
    }
}

impl<T> Place<T> {
    pub(crate) fn put(&self, value: T) {
        // SAFETY: not NULL, and by the conventions writable for the time of the call. What was there is not read:
        // it may never have been set.
        unsafe { self.0.write(value) }
    }

    /// Puts `values`, of which there are at most as many as C made room for.
    pub(crate) fn put_all(&self, values: Vec<T>) {
        for (index, value) in values.into_iter().enumerate() {
            // SAFETY: as in `put`, and C said that there is room for as many as were asked for.
            unsafe { self.0.add(index).write(value) }
        }
    }
}

/// A string from C, ended by NUL or with its length beside it; may be NULL.
pub(crate) trait Text {
    /// The string up to its NUL.
    ///
    /// # Errors
    /// `InvalidArgument` naming `argument` if it is NULL or not UTF-8.
    fn text(&self, argument: &'static str) -> Result<&str>;

    /// The string of `length` bytes.
    ///
    /// # Errors
    /// `InvalidArgument` naming `argument` if it is NULL, of impossible length, or not UTF-8.
    fn text_n(&self, length: usize, argument: &'static str) -> Result<&str>;
}

impl Text for *const c_char {
    fn text(&self, argument: &'static str) -> Result<&str> {
        if self.is_null() {
            return Err(Error::invalid(argument, "must not be NULL"));
        }
        // SAFETY: not NULL, and by the conventions ended by NUL and unchanged for the time of the call.
        let bytes = unsafe { CStr::from_ptr(*self) }.to_bytes();
        utf8(bytes, argument)
    }

    fn text_n(&self, length: usize, argument: &'static str) -> Result<&str> {
        if self.is_null() {
            return Err(Error::invalid(argument, "must not be NULL"));
        }
        if isize::try_from(length).is_err() {
            return Err(Error::invalid(argument, "has an impossible length"));
        }
        // SAFETY: not NULL, of a length that a slice can have, and by the conventions that many bytes are there,
        // unchanged for the time of the call.
        let bytes = unsafe { std::slice::from_raw_parts(self.cast::<u8>(), length) };
        utf8(bytes, argument)
    }
}

fn utf8<'a>(bytes: &'a [u8], argument: &'static str) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|_| Error::invalid(argument, "must be UTF-8"))
}

/// An array of strings from C; may be NULL.
pub(crate) trait Texts {
    /// The strings, of which C says that there are `count`.
    ///
    /// # Errors
    /// `InvalidArgument` naming `argument` if the array or a string is NULL, or a string is not UTF-8.
    fn texts(&self, count: usize, argument: &'static str) -> Result<Vec<String>>;
}

impl Texts for *const *const c_char {
    fn texts(&self, count: usize, argument: &'static str) -> Result<Vec<String>> {
        if self.is_null() {
            return Err(Error::invalid(argument, "must not be NULL"));
        }
        if isize::try_from(count.saturating_mul(size_of::<*const c_char>())).is_err() {
            return Err(Error::invalid(argument, "has an impossible length"));
        }
        // SAFETY: not NULL, of a length that a slice can have, and by the conventions that many pointers are there.
        let texts = unsafe { std::slice::from_raw_parts(*self, count) };
        texts.iter().map(|one| one.text(argument).map(str::to_owned)).collect()
    }
}

/// Room for a string; may be NULL.
pub(crate) trait Buffer {
    /// Writes as much of `text` as `capacity` has room for, and NUL behind it.
    fn fill(self, capacity: usize, text: &str);
}

impl Buffer for *mut c_char {
    fn fill(self, capacity: usize, text: &str) {
        let Some(room) = capacity.checked_sub(1) else { return };
        if self.is_null() {
            return;
        }
        let mut length = room.min(text.len());
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        // SAFETY: not NULL, and by the conventions there is room for `capacity` bytes, of which `length` + 1 are
        // written; the text is the library's own and does not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), self.cast::<u8>(), length);
            self.add(length).write(0);
        }
    }
}

/// Closes a descriptor that the child of a fork has inherited.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: the engine names each inherited descriptor once, and uses and closes none of them itself.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::ptr;

    #[test]
    fn texts_name_what_is_wrong() {
        let null = ptr::null::<c_char>();
        assert_eq!(c"ünï".as_ptr().text("url").unwrap(), "ünï");
        assert_eq!(c"a\xff".as_ptr().text("url").unwrap_err().to_string(), "url must be UTF-8");
        assert_eq!(Text::text(&null, "url").unwrap_err().argument(), Some("url"));
        assert_eq!(c"abc".as_ptr().text_n(2, "url").unwrap(), "ab");
        assert!(c"abc".as_ptr().text_n(usize::MAX, "url").is_err());
        assert!(null.text_n(0, "url").is_err());
        let array = [c"a".as_ptr(), c"b".as_ptr()];
        assert_eq!(array.as_ptr().texts(2, "urls").unwrap(), ["a", "b"]);
        assert!(array.as_ptr().texts(usize::MAX, "urls").is_err());
        assert!(ptr::null::<*const c_char>().texts(0, "urls").is_err());
    }

    #[test]
    fn buffers_are_never_overrun() {
        let mut bytes = [b'#'; 8];
        let cases = [(0, &b"########"[..]), (1, b"\0#######"), (3, b"a\0######"), (8, b"a\xc3\xbcbc\0##")];
        for (capacity, expected) in cases {
            bytes.fill(b'#');
            Buffer::fill(bytes.as_mut_ptr().cast::<c_char>(), capacity, "aübc");
            assert_eq!(bytes, expected, "{capacity}");
        }
        Buffer::fill(ptr::null_mut::<c_char>(), 8, "a");
    }

    #[test]
    fn outputs_may_be_null_where_that_is_allowed() {
        let mut value = 1_u64;
        (&raw mut value).required("out").unwrap().put(2);
        assert_eq!(value, 2);
        assert_eq!(ptr::null_mut::<u64>().required("out").err().unwrap().argument(), Some("out"));
        let mut values = [0_u8; 3];
        values.as_mut_ptr().required("out").unwrap().put_all(vec![1, 2]);
        assert_eq!(values, [1, 2, 0]);
    }
}
