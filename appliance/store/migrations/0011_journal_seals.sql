-- Seals of the machine's journal are rows of the audit log; each follows the last of its counting of entries.

CREATE INDEX audit_journal_seals ON audit_log (subject, id) WHERE action = 'journal.seal';
