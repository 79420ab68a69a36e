//! From the return values of PKCS#11 to our errors. What is left out is something no operator can act on.

use cryptoki::{
    context::Function,
    error::{Error as Cryptoki, RvError},
};

use crate::Error;

/// Gives the mapping of errors for an operation; `what` completes "the token does not support …".
pub(super) fn during(what: &'static str) -> impl Fn(Cryptoki) -> Error {
    move |error| match error {
        Cryptoki::Pkcs11(rv, function) => from_rv(rv, function, what),
        other => Error::Device { function: what.to_owned(), code: other.to_string() },
    }
}

fn from_rv(rv: RvError, function: Function, what: &'static str) -> Error {
    match rv {
        RvError::DeviceRemoved
        | RvError::DeviceError
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::SlotIdInvalid => Error::Absent,
        // An operation that is active when none should be also needs a new session.
        RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::ObjectHandleInvalid
        | RvError::KeyHandleInvalid
        | RvError::WrappingKeyHandleInvalid
        | RvError::UnwrappingKeyHandleInvalid
        | RvError::OperationActive
        | RvError::OperationNotInitialized
        | RvError::CryptokiNotInitialized => Error::SessionLost,
        RvError::UserNotLoggedIn => Error::NotLoggedIn,
        RvError::PinIncorrect => Error::PinIncorrect,
        RvError::PinLocked => Error::PinLocked,
        RvError::PinExpired => Error::PinExpired,
        RvError::UserPinNotInitialized => Error::PinNotSet,
        RvError::PinInvalid | RvError::PinLenRange | RvError::PinTooWeak => Error::PinForm,
        RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::FunctionNotSupported
        | RvError::CurveNotSupported
        | RvError::DomainParamsInvalid
        | RvError::KeyTypeInconsistent
        | RvError::KeySizeRange => Error::Unsupported(what.to_owned()),
        RvError::KeyUnextractable
        | RvError::KeyNotWrappable
        | RvError::KeyFunctionNotPermitted
        | RvError::ActionProhibited
        | RvError::AttributeSensitive
        | RvError::FunctionRejected
        | RvError::TokenWriteProtected => Error::Forbidden(what.to_owned()),
        RvError::SessionCount | RvError::HostMemory | RvError::DeviceMemory => Error::Busy,
        RvError::Cancel | RvError::FunctionCanceled => Error::Timeout,
        RvError::PublicKeyInvalid => Error::InvalidPeer,
        RvError::WrappedKeyInvalid
        | RvError::WrappedKeyLenRange
        | RvError::EncryptedDataInvalid
        | RvError::EncryptedDataLenRange => Error::Damaged,
        other => Error::Device { function: format!("C_{function:?}"), code: format!("{other:?}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    #[test]
    fn return_values_are_sorted_by_who_can_help() {
        let cases = [
            (RvError::DeviceRemoved, Class::Reopen, "check the device and its connection"),
            (RvError::TokenNotPresent, Class::Reopen, "check the device and its connection"),
            (RvError::SessionHandleInvalid, Class::Reopen, "opened again by itself"),
            (RvError::ObjectHandleInvalid, Class::Reopen, "opened again by itself"),
            (RvError::CryptokiNotInitialized, Class::Reopen, "opened again by itself"),
            (RvError::UserNotLoggedIn, Class::Reopen, "no longer logged in"),
            (RvError::PinIncorrect, Class::Operator, "give the right one"),
            (RvError::PinLocked, Class::Operator, "security officer's PIN"),
            (RvError::PinExpired, Class::Operator, "set a new one"),
            (RvError::PinLenRange, Class::Operator, "choose one of the length"),
            (RvError::UserPinNotInitialized, Class::Operator, "key ceremony"),
            (RvError::MechanismInvalid, Class::Caller, "does not support testing"),
            (RvError::KeyUnextractable, Class::Caller, "forbids testing"),
            (RvError::DeviceMemory, Class::Retry, "try again later"),
            (RvError::FunctionCanceled, Class::Retry, "did not answer in time"),
            (RvError::WrappedKeyInvalid, Class::Caller, "is damaged"),
            (RvError::GeneralError, Class::Caller, "failed in C_Sign with GeneralError"),
            (RvError::VendorDefined(0x8000_0001), Class::Caller, "VendorDefined(2147483649)"),
        ];
        for (rv, class, text) in cases {
            let error = during("testing")(Cryptoki::Pkcs11(rv, Function::Sign));
            assert_eq!(error.class(), class, "{rv:?}");
            assert!(error.to_string().contains(text), "{rv:?}: {error}");
        }
        let error = during("testing")(Cryptoki::NullFunctionPointer);
        assert!(error.to_string().contains("testing"), "{error}");
    }
}
