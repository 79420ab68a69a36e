//! The module: the functions of the real one with ours put over some of them.

#![expect(unsafe_code, reason = "PKCS#11 is a C interface")]

use std::{
    env,
    ffi::c_void,
    process, ptr, slice,
    sync::{LazyLock, Mutex, OnceLock, PoisonError},
    thread,
};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BBOOL, CK_BYTE, CK_FUNCTION_LIST, CK_MECHANISM, CK_MECHANISM_INFO,
    CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_TOKEN_INFO,
    CK_ULONG, CK_USER_TYPE, CK_UTF8CHAR, CKF_PROTECTED_AUTHENTICATION_PATH, CKF_USER_PIN_FINAL_TRY,
    CKR_BUFFER_TOO_SMALL, CKR_FUNCTION_NOT_SUPPORTED, CKR_GENERAL_ERROR, CKR_MECHANISM_INVALID,
    CKR_OK, Pkcs11,
};

use crate::{Fault, Function, ORDERS, Orders, PAD_PIN, REAL};

/// The entry point of every PKCS#11 module.
///
/// # Safety
/// `list` must be valid for a write, as PKCS#11 says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    static FAULTY: OnceLock<CK_FUNCTION_LIST> = OnceLock::new();
    let Some(real) = &*THE_REAL else { return CKR_FUNCTION_NOT_SUPPORTED };
    let faulty = FAULTY.get_or_init(|| CK_FUNCTION_LIST {
        C_Finalize: Some(finalize),
        C_GetMechanismList: Some(get_mechanism_list),
        C_GetMechanismInfo: Some(get_mechanism_info),
        C_GenerateKey: Some(generate_key),
        C_GenerateKeyPair: Some(generate_key_pair),
        C_DeriveKey: Some(derive_key),
        C_WrapKey: Some(wrap_key),
        C_UnwrapKey: Some(unwrap_key),
        C_EncryptInit: Some(encrypt_init),
        C_DecryptInit: Some(decrypt_init),
        C_GetSlotList: Some(get_slot_list),
        C_GetTokenInfo: Some(get_token_info),
        C_Login: Some(login),
        C_FindObjects: Some(find_objects),
        C_GetAttributeValue: Some(get_attribute_value),
        C_SignInit: Some(sign_init),
        C_Sign: Some(sign),
        ..real.list
    });
    // SAFETY: by the contract of this function. Callers never write through the pointer.
    unsafe { list.write(ptr::from_ref(faulty).cast_mut()) };
    CKR_OK
}

/// The module under the faults, loaded for the life of the process.
struct Real {
    _library: Pkcs11,
    list: CK_FUNCTION_LIST,
}

static THE_REAL: LazyLock<Option<Real>> = LazyLock::new(|| {
    let path = env::var_os(REAL)?;
    let mut list = ptr::null_mut();
    // SAFETY: the test names a PKCS#11 module, whose entry point gives a list that lives as long as the library.
    unsafe {
        let library = Pkcs11::new(path).ok()?;
        let entry = *library.C_GetFunctionList.as_ref().ok()?;
        (entry(&raw mut list) == CKR_OK).then_some(())?;
        Some(Real { _library: library, list: *list })
    }
});

static THE_ORDERS: LazyLock<Orders> =
    LazyLock::new(|| Orders::new(env::var_os(ORDERS).unwrap_or_default().as_ref()));

/// The keys that signed last, and whether their handles are exchanged.
#[derive(Clone, Copy)]
struct Handles {
    last: CK_OBJECT_HANDLE,
    before: CK_OBJECT_HANDLE,
    swapped: bool,
}

static HANDLES: Mutex<Handles> = Mutex::new(Handles { last: 0, before: 0, swapped: false });

fn handles<T>(look: impl FnOnce(&mut Handles) -> T) -> T {
    look(&mut HANDLES.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Handles {
    fn signs(&mut self, key: CK_OBJECT_HANDLE) {
        if key != self.last {
            (self.last, self.before) = (key, self.last);
        }
    }

    /// From a number of the real module to the caller's, or back.
    fn translate(&self, handle: CK_OBJECT_HANDLE) -> CK_OBJECT_HANDLE {
        match handle {
            known if !self.swapped => known,
            known if known == self.last => self.before,
            known if known == self.before => self.last,
            other => other,
        }
    }
}

/// What is left of a fault that every function can have.
fn fault(function: Function) -> Option<Fault> {
    match THE_ORDERS.take(function)? {
        Fault::Hang => loop {
            thread::park();
        },
        Fault::Crash => process::abort(),
        Fault::Escape => {
            drop(THE_ORDERS.escape());
            None
        }
        Fault::Delay(time) => {
            thread::sleep(time);
            None
        }
        other => Some(other),
    }
}

fn returned(fault: Option<Fault>) -> Option<CK_RV> {
    match fault {
        Some(Fault::Return(rv)) => CK_RV::try_from(rv).ok(),
        _ => None,
    }
}

unsafe extern "C" fn finalize(reserved: *mut c_void) -> CK_RV {
    fault(Function::Finalize);
    drop(THE_ORDERS.end_at_finalize());
    let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.C_Finalize) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real(reserved) }
}

unsafe extern "C" fn get_slot_list(
    present: CK_BBOOL,
    slots: *mut CK_SLOT_ID,
    count: *mut CK_ULONG,
) -> CK_RV {
    if let Some(rv) = returned(fault(Function::GetSlotList)) {
        return rv;
    }
    let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.C_GetSlotList) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real(present, slots, count) }
}

fn hidden(mechanism: CK_MECHANISM_TYPE) -> bool {
    THE_ORDERS.hides(mechanism)
}

/// Lists what is not hidden.
unsafe extern "C" fn get_mechanism_list(
    slot: CK_SLOT_ID,
    list: *mut CK_MECHANISM_TYPE,
    count: *mut CK_ULONG,
) -> CK_RV {
    let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.C_GetMechanismList) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    let mut all = 0;
    // SAFETY: a null list asks for the length; then `known` has room for as many.
    let (rv, mut known) = unsafe {
        let rv = real(slot, ptr::null_mut(), &raw mut all);
        if rv != CKR_OK {
            return rv;
        }
        let mut known = vec![0; usize::try_from(all).unwrap_or_default()];
        (real(slot, known.as_mut_ptr(), &raw mut all), known)
    };
    if rv != CKR_OK {
        return rv;
    }
    known.retain(|mechanism| !hidden(*mechanism));
    let Ok(length) = CK_ULONG::try_from(known.len()) else { return CKR_GENERAL_ERROR };
    // SAFETY: by the standard `count` says how many fit into `list`, unless that is null.
    unsafe {
        let room = count.replace(length);
        if !list.is_null() {
            if room < length {
                return CKR_BUFFER_TOO_SMALL;
            }
            ptr::copy_nonoverlapping(known.as_ptr(), list, known.len());
        }
    }
    CKR_OK
}

unsafe extern "C" fn get_mechanism_info(
    slot: CK_SLOT_ID,
    mechanism: CK_MECHANISM_TYPE,
    info: *mut CK_MECHANISM_INFO,
) -> CK_RV {
    if hidden(mechanism) {
        return CKR_MECHANISM_INVALID;
    }
    let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.C_GetMechanismInfo) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real(slot, mechanism, info) }
}

/// Functions that take a mechanism and do nothing else here than refuse one that is hidden.
macro_rules! refuse_hidden {
    ($($name:ident as $real:ident($($before:ident: $before_type:ty),*; $($after:ident: $after_type:ty),*);)*) => {
        $(unsafe extern "C" fn $name(
            $($before: $before_type,)*
            mechanism: *mut CK_MECHANISM,
            $($after: $after_type,)*
        ) -> CK_RV {
            // SAFETY: by the standard a mechanism is a valid pointer, or null, which the real module judges.
            if unsafe { mechanism.as_ref() }.is_some_and(|mechanism| hidden(mechanism.mechanism)) {
                return CKR_MECHANISM_INVALID;
            }
            let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.$real) else {
                return CKR_FUNCTION_NOT_SUPPORTED;
            };
            // SAFETY: the caller's arguments, unchanged.
            unsafe { real($($before,)* mechanism, $($after),*) }
        })*
    };
}

refuse_hidden! {
    generate_key as C_GenerateKey(session: CK_SESSION_HANDLE;
        template: *mut CK_ATTRIBUTE, count: CK_ULONG, key: *mut CK_OBJECT_HANDLE);
    generate_key_pair as C_GenerateKeyPair(session: CK_SESSION_HANDLE;
        public: *mut CK_ATTRIBUTE, publics: CK_ULONG, private: *mut CK_ATTRIBUTE, privates: CK_ULONG,
        public_key: *mut CK_OBJECT_HANDLE, private_key: *mut CK_OBJECT_HANDLE);
    derive_key as C_DeriveKey(session: CK_SESSION_HANDLE;
        base: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG, key: *mut CK_OBJECT_HANDLE);
    wrap_key as C_WrapKey(session: CK_SESSION_HANDLE;
        kek: CK_OBJECT_HANDLE, key: CK_OBJECT_HANDLE, wrapped: *mut CK_BYTE, length: *mut CK_ULONG);
    unwrap_key as C_UnwrapKey(session: CK_SESSION_HANDLE;
        kek: CK_OBJECT_HANDLE, wrapped: *mut CK_BYTE, length: CK_ULONG,
        template: *mut CK_ATTRIBUTE, count: CK_ULONG, key: *mut CK_OBJECT_HANDLE);
    encrypt_init as C_EncryptInit(session: CK_SESSION_HANDLE; key: CK_OBJECT_HANDLE);
    decrypt_init as C_DecryptInit(session: CK_SESSION_HANDLE; key: CK_OBJECT_HANDLE);
}

unsafe extern "C" fn get_token_info(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let fault = fault(Function::GetTokenInfo);
    if let Some(rv) = returned(fault) {
        return rv;
    }
    let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.C_GetTokenInfo) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged; on success `info` was written.
    unsafe {
        let rv = real(slot, info);
        if rv == CKR_OK {
            match fault {
                Some(Fault::FinalTry) => (*info).flags |= CKF_USER_PIN_FINAL_TRY,
                Some(Fault::PinPad) => (*info).flags |= CKF_PROTECTED_AUTHENTICATION_PATH,
                Some(Fault::OtherSerial) => (*info).serialNumber = *b"ANOTHER TOKEN   ",
                _ => {}
            }
        }
        rv
    }
}

unsafe extern "C" fn login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    pin_bytes: CK_ULONG,
) -> CK_RV {
    if let Some(rv) = returned(fault(Function::Login)) {
        return rv;
    }
    let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.C_Login) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    let (mut typed, typed_bytes) = (PAD_PIN.to_owned().into_bytes(), PAD_PIN.len() as CK_ULONG);
    // SAFETY: the caller's arguments, or a PIN of its own length in place of none.
    unsafe {
        if pin.is_null() {
            real(session, user, typed.as_mut_ptr(), typed_bytes)
        } else {
            real(session, user, pin, pin_bytes)
        }
    }
}

unsafe extern "C" fn find_objects(
    session: CK_SESSION_HANDLE,
    objects: *mut CK_OBJECT_HANDLE,
    max: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.C_FindObjects) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged; on success `objects` holds `count` handles.
    unsafe {
        let rv = real(session, objects, max, count);
        if rv == CKR_OK {
            let found = usize::try_from(*count).unwrap_or_default();
            for object in slice::from_raw_parts_mut(objects, found) {
                *object = handles(|handles| handles.translate(*object));
            }
        }
        rv
    }
}

unsafe extern "C" fn get_attribute_value(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    attributes: CK_ULONG,
) -> CK_RV {
    let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.C_GetAttributeValue) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    let object = handles(|handles| handles.translate(object));
    // SAFETY: the caller's arguments but for the handle, which is one that the real module gave.
    unsafe { real(session, object, template, attributes) }
}

unsafe extern "C" fn sign_init(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.C_SignInit) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: by the standard a mechanism is a valid pointer, or null, which the real module judges.
    if unsafe { mechanism.as_ref() }.is_some_and(|mechanism| hidden(mechanism.mechanism)) {
        return CKR_MECHANISM_INVALID;
    }
    let swap = fault(Function::SignInit) == Some(Fault::SwapHandles);
    let key = handles(|handles| {
        handles.swapped |= swap;
        let key = handles.translate(key);
        if !handles.swapped {
            handles.signs(key);
        }
        key
    });
    // SAFETY: the caller's arguments but for the handle, which is one that the real module gave.
    unsafe { real(session, mechanism, key) }
}

unsafe extern "C" fn sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    data_bytes: CK_ULONG,
    signature: *mut CK_BYTE,
    signature_bytes: *mut CK_ULONG,
) -> CK_RV {
    // The first call only asks for the length.
    let fault = if signature.is_null() { None } else { fault(Function::Sign) };
    let Some(real) = THE_REAL.as_ref().and_then(|real| real.list.C_Sign) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged; on success `signature` holds that many bytes.
    unsafe {
        let rv = real(session, data, data_bytes, signature, signature_bytes);
        if let Some(ordered) = returned(fault) {
            // Only now, because a failure ends the operation.
            return ordered;
        }
        if rv == CKR_OK && fault == Some(Fault::Flip) {
            let length = usize::try_from(*signature_bytes).unwrap_or_default();
            if let Some(byte) = slice::from_raw_parts_mut(signature, length).first_mut() {
                *byte ^= 1;
            }
        }
        rv
    }
}
