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
    CK_ATTRIBUTE, CK_BBOOL, CK_BYTE, CK_FUNCTION_LIST, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_SLOT_ID, CK_TOKEN_INFO, CK_ULONG, CK_USER_TYPE, CK_UTF8CHAR,
    CKF_USER_PIN_FINAL_TRY, CKR_FUNCTION_NOT_SUPPORTED, CKR_OK, Pkcs11,
};

use crate::{Fault, Function, ORDERS, Orders, REAL};

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
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real(session, user, pin, pin_bytes) }
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
