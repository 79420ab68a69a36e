//! Slips.

use crate::desk::Desk;

#[test]
fn slips_tell_a_person_all_they_need() {
    let desk = Desk::new();
    desk.write(
        "codes.json",
        r#"[{"user_id": "@alice:alpha.example", "display_name": "Alice", "unit": "3rd Company",
             "code": "0000-0000-0000-0000-0000-0000", "expires_at": 1796518800000},
            {"user_id": "@bob:alpha.example", "display_name": null, "unit": null,
             "code": "0000-0000-0000-0000-0000-0000", "expires_at": 1796518800000}]"#,
    );
    let slips = desk.run("codes print codes.json --url https://chat.alpha.example/activate").ok();
    let line = "- - - - - - - - - - - - - - - - - - - - - - - - - - - - - -\n";
    assert_eq!(
        slips,
        format!(
            "{line}
  Account  @alice:alpha.example
  Name     Alice
  Unit     3rd Company
  Code     0000-0000-0000-0000-0000-0000

  Open https://chat.alpha.example/activate, type the code and choose a password.
  It works once, and before 2026-12-06. Show it to nobody.

{line}
  Account  @bob:alpha.example
  Code     0000-0000-0000-0000-0000-0000

  Open https://chat.alpha.example/activate, type the code and choose a password.
  It works once, and before 2026-12-06. Show it to nobody.

"
        )
    );
    desk.write("empty.json", "[]");
    desk.run("codes print empty.json").fails(1, "empty.json has no codes");
    desk.run("codes print token.toml").fails(1, "token.toml is not a file of codes");
    desk.run("codes renew --codes out.json").fails(2, "LOCALPART");
    desk.run("codes renew Alice --codes out.json").fails(2, "not a localpart");
    desk.run("codes renew alice --codes out.json").fails(3, "the box does not answer");
    assert!(!desk.path("out.json").exists());
}
