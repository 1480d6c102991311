package convert

import (
	"errors"
	"strings"
	"testing"

	"auditsink/internal/testkit"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// stop ends a run at a stage, after something was done there.
func runUntil(t *testing.T, db, stage string, then func()) (Summary, error) {
	t.Helper()
	o := options(db)
	done := false
	o.Report = func(p Progress) {
		if p.Stage == stage && !done {
			done = true
			then()
		}
	}
	s, err := Run(t.Context(), o)
	require.True(t, done, "it came to %s", stage)
	return s, err
}

// A new table that isn't what the old one is never takes its place.
func TestCorruptionIsFound(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		before, shape := content(t, conn, "audit_log"), schema(t, conn)
		partition := "audit_convert.audit_log_2024_05"
		for _, plant := range []struct{ name, sql, undo, month, row string }{
			{
				"a row is missing", `CREATE TABLE aside AS SELECT * FROM ` + partition + ` ORDER BY id LIMIT 1; DELETE FROM ` + partition + ` WHERE id = (SELECT id FROM aside)`,
				`INSERT INTO ` + partition + ` SELECT * FROM aside; DROP TABLE aside`, "2024-05", "is missing",
			},
			{"a row is another", `UPDATE audit_convert.audit_log SET action = action || '.' WHERE id = 1`, `UPDATE audit_convert.audit_log SET action = left(action, -1) WHERE id = 1`, "2014-12", "id 1 is another"},
			{"a row is null where it was empty", `UPDATE audit_convert.audit_log SET ttl = '' WHERE id = 3`, `UPDATE audit_convert.audit_log SET ttl = NULL WHERE id = 3`, "2016-02", "id 3 is another"},
			{
				"a row is another by a microsecond", `UPDATE audit_convert.audit_log SET timestamp = timestamp - interval '1 microsecond' WHERE id = 3`,
				`UPDATE audit_convert.audit_log SET timestamp = timestamp + interval '1 microsecond' WHERE id = 3`, "2016-02", "id 3 is another",
			},
			{
				"a row is too many", `INSERT INTO audit_convert.audit_log (id, timestamp, action, status) VALUES (1, '2015-01-05', 'x', 'success')`,
				`DELETE FROM audit_convert.audit_log WHERE action = 'x'`, "2015-01", "id 1 is too many",
			},
			{
				"a month is too many", `INSERT INTO audit_convert.audit_log (id, timestamp, action, status) VALUES (77777, now() + interval '3 months', 'x', 'success')`,
				`DELETE FROM audit_convert.audit_log WHERE action = 'x'`, "", "id 77777 is too many",
			},
			{
				"a verification is another", `UPDATE audit_convert.audit_integrity_log SET verified_by = 'x' WHERE id = 7`,
				`UPDATE audit_convert.audit_integrity_log SET verified_by = NULL WHERE id = 7`, "audit_integrity_log", "",
			},
			{
				"two rows have changed places", `UPDATE audit_convert.audit_log SET status = CASE id WHEN 1 THEN 'failure' ELSE 'success' END WHERE id IN (1, 2)`,
				`UPDATE audit_convert.audit_log SET status = CASE id WHEN 1 THEN 'success' ELSE 'failure' END WHERE id IN (1, 2)`, "201", "is another",
			},
		} {
			_, err := runUntil(t, db, "comparing both tables", func() { testkit.Exec(t, conn, plant.sql) })
			var mismatch *MismatchError
			require.ErrorAs(t, err, &mismatch, plant.name)
			require.Contains(t, mismatch.Month, plant.month, plant.name)
			require.Contains(t, strings.Join(mismatch.Rows, "; "), plant.row, plant.name)
			require.Equal(t, before, content(t, conn, "audit_log"), plant.name)
			testkit.Exec(t, conn, plant.undo)
		}
		// What changes after the comparison, and is none of a writer's, is found when the replaced table is to be dropped. Triggers that were taken away are found at once.
		_, err := runUntil(t, db, "swapping", func() { testkit.Exec(t, conn, `ALTER TABLE audit_log DISABLE TRIGGER auditsink_convert_note`) })
		require.ErrorContains(t, err, "dropped or disabled")
		testkit.Exec(t, conn, `ALTER TABLE audit_log ENABLE ALWAYS TRIGGER auditsink_convert_note`)
		_, err = runUntil(t, db, "swapping", func() { testkit.Exec(t, conn, `ALTER TABLE audit_log ADD extra int`) })
		require.ErrorContains(t, err, "have changed")
		_, err = Run(t.Context(), options(db))
		require.ErrorContains(t, err, "extra")
		testkit.Exec(t, conn, `ALTER TABLE audit_log DROP extra`)
		_, err = conn.Exec(t.Context(), `TRUNCATE audit_log CASCADE`)
		require.ErrorContains(t, err, "--rollback")

		require.NoError(t, Rollback(t.Context(), options(db)))
		require.Equal(t, before, content(t, conn, "audit_log"))
		require.Equal(t, shape, schema(t, conn))
		require.Empty(t, testkit.Column[string](t, conn, `SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal`))
		require.Empty(t, testkit.Column[string](t, conn, `SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'audit%'`))
		_, err = Run(t.Context(), options(db))
		require.NoError(t, err)
		require.Equal(t, before, content(t, conn, "audit_log"))
	})
}

// Timestamps that a broken clock made leave no partitions behind: such rows are refused, or set aside and accounted for.
func TestOutliers(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		testkit.Exec(t, conn, `INSERT INTO audit_log (id, timestamp, action, status) VALUES (20001, '0001-01-01 00:00+00', 'year 1', 'success'), (20002, '2097-01-01 00:00+00', 'year 2097', 'success'),
			(20003, '52217-05-05 00:00+00', 'year 52217', 'success'), (20004, '1969-12-31 23:59:59.999999+00', 'year 1969', 'success'), (20005, 'infinity', 'no year', 'success'),
			(20006, now() + interval '47 hours', 'just right', 'success'), (20007, '4000-01-01 BC', 'BC', 'success')`)
		before := content(t, conn, "audit_log")
		_, err := Run(t.Context(), options(db))
		var refusal *Refusal
		require.ErrorAs(t, err, &refusal)
		require.Len(t, refusal.Reasons, 1)
		require.Contains(t, refusal.Reasons[0], "6 rows")
		require.Contains(t, refusal.Reasons[0], "20001, 20002, 20003, 20004, 20005")
		require.Contains(t, refusal.Reasons[0], "--set-aside")
		require.Empty(t, testkit.Column[string](t, conn, `SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'audit%'`), "nothing was changed")

		o := options(db)
		o.SetAside = true
		plan, err := Check(t.Context(), o)
		require.NoError(t, err)
		require.EqualValues(t, 6, plan.SetAside)
		// Some more come in the meantime; one of those is mended, and one of the others, too.
		done := false
		o.Report = func(p Progress) {
			if p.Stage == "comparing both tables" && !done {
				done = true
				testkit.Exec(t, conn, `INSERT INTO audit_log (id, timestamp, action, status) VALUES (20011, '52218-01-01 00:00+00', 'later', 'success'), (20012, '2098-01-01 00:00+00', 'later', 'success');
					UPDATE audit_log SET timestamp = '2020-01-01' WHERE id IN (20003, 20012)`)
			}
		}
		s, err := Run(t.Context(), o)
		require.NoError(t, err)
		require.EqualValues(t, 6, s.SetAside)
		require.EqualValues(t, len(before)+2, s.Rows)
		require.Equal(t, []int64{20001, 20002, 20004, 20005, 20007, 20011}, testkit.Column[int64](t, conn, `SELECT id FROM audit_log_set_aside WHERE why <> '' ORDER BY id`))
		require.Equal(t, []string{"just right"}, testkit.Column[string](t, conn, `SELECT action::text FROM audit_log WHERE id BETWEEN 20000 AND 30000 AND timestamp > '2021-01-01'`))
		require.Equal(t, []int64{20003, 20012}, testkit.Column[int64](t, conn, `SELECT id FROM audit_log WHERE timestamp = '2020-01-01' ORDER BY id`))
		require.Empty(t, testkit.Column[string](t, conn, `SELECT partition_name FROM audit_log_partition_bounds() WHERE lower_bound < '1970-01-01' OR lower_bound > now() + interval '7 months'`))
		require.Equal(t, []int64{6}, testkit.Column[int64](t, conn, `SELECT sum(row_count)::bigint FROM audit_partition_event WHERE kind = 'set_aside'`))
		d, err := DropReplaced(t.Context(), options(db))
		require.NoError(t, err)
		require.Equal(t, s.Rows, d.Rows)
	})
}

// One that comes while the conversion is under way, which wasn't told to set any aside, stops it and loses nothing.
func TestOutlierThatComesLate(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		_, err := runUntil(t, db, "swapping", func() {
			testkit.Exec(t, conn, `INSERT INTO audit_log (timestamp, action, status) VALUES ('52217-01-01 00:00+00', 'x', 'success')`)
		})
		require.ErrorAs(t, err, new(*Refusal))
		require.ErrorContains(t, err, "--set-aside")
		before := content(t, conn, "audit_log")
		o := options(db)
		o.SetAside = true
		s, err := Run(t.Context(), o)
		require.NoError(t, err)
		require.EqualValues(t, 1, s.SetAside)
		require.Equal(t, before, content(t, conn, "audit_replaced.audit_log"))
	})
}

// A value that our table doesn't take and that came late: the rows to blame are named, and can be mended.
func TestBadValueThatComesLate(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		_, err := runUntil(t, db, "swapping", func() {
			testkit.Exec(t, conn, `INSERT INTO audit_log (id, timestamp, action, status) VALUES (30000, now(), 'x', 'done')`)
		})
		require.ErrorContains(t, err, "30000")
		testkit.Exec(t, conn, `UPDATE audit_log SET status = 'success' WHERE id = 30000`)
		_, err = Run(t.Context(), options(db))
		require.NoError(t, err)
	})
}

func TestRefusals(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		for _, test := range []struct{ name, sql, undo, want string }{
			{"unknown column", `ALTER TABLE audit_log ADD session_id text`, `ALTER TABLE audit_log DROP session_id`, "session_id"},
			{"missing column", `ALTER TABLE audit_log RENAME action TO verb`, `ALTER TABLE audit_log RENAME verb TO action`, `"audit_log".action is missing`},
			{"other type", `ALTER TABLE audit_log ALTER details TYPE text`, `ALTER TABLE audit_log ALTER details TYPE jsonb USING details::jsonb`, "details has the type text"},
			{
				"no primary key", `ALTER TABLE audit_integrity_log DROP CONSTRAINT audit_integrity_log_audit_log_id_fkey; ALTER TABLE audit_log DROP CONSTRAINT audit_log_pkey`,
				`ALTER TABLE audit_log ADD PRIMARY KEY (id); ALTER TABLE audit_integrity_log ADD FOREIGN KEY (audit_log_id) REFERENCES audit_log`, "no primary key",
			},
			{"no index", `DROP INDEX audit_log_timestamp_idx, audit_log_timestamp_status_idx`, `CREATE INDEX audit_log_timestamp_idx ON audit_log (timestamp)`, "CREATE INDEX CONCURRENTLY"},
			{"view", `CREATE VIEW failures AS SELECT * FROM audit_log WHERE status = 'failure'`, `DROP VIEW failures`, "view public.failures depends on public.audit_log"},
			{"foreign key from elsewhere", `CREATE TABLE comments (audit_log_id int REFERENCES audit_log)`, `DROP TABLE comments`, "drop the foreign key"},
			{"foreign key to elsewhere", `CREATE TABLE orgs (id text PRIMARY KEY); ALTER TABLE audit_log ADD FOREIGN KEY (organization_id) REFERENCES orgs NOT VALID`, `DROP TABLE orgs CASCADE`, "drop the foreign key"},
			{"trigger", `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER mine BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION f()`, `DROP FUNCTION f() CASCADE`, "trigger mine on table public.audit_log"},
			{"rule", `CREATE RULE mine AS ON DELETE TO audit_log DO INSTEAD NOTHING`, `DROP RULE mine ON audit_log`, "rule mine on table public.audit_log"},
			{"row security", `ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY`, `ALTER TABLE audit_log DISABLE ROW LEVEL SECURITY`, "row security"},
			{"policy", `CREATE POLICY p ON audit_log USING (true)`, `DROP POLICY p ON audit_log`, "policy p on table public.audit_log"},
			{"publication", `CREATE PUBLICATION pub FOR TABLE audit_log`, `DROP PUBLICATION pub`, "publication"},
			{"child", `CREATE TABLE child () INHERITS (audit_log)`, `DROP TABLE child`, "child"},
			{"function of the row", `CREATE FUNCTION label(audit_log) RETURNS text LANGUAGE sql AS 'SELECT 1::text'`, `DROP FUNCTION label(audit_log)`, "function public.label"},
			{"name of a partition", `CREATE TABLE audit_log_2024_05 (id int)`, `DROP TABLE audit_log_2024_05`, "audit_log_2024_05"},
			{"name of a table", `CREATE VIEW audit_lane AS SELECT 1`, `DROP VIEW audit_lane`, "audit_lane"},
			{"name of a sequence", `ALTER SEQUENCE audit_integrity_log_id_seq OWNED BY NONE`, `ALTER SEQUENCE audit_integrity_log_id_seq OWNED BY audit_integrity_log.id`, "audit_integrity_log_id_seq"},
			{"schema of ours", `CREATE SCHEMA audit_replaced`, `DROP SCHEMA audit_replaced`, "audit_replaced"},
			{"other schema of ours", `CREATE SCHEMA audit_convert`, `DROP SCHEMA audit_convert`, "audit_convert"},
			{"status", `INSERT INTO audit_log (id, timestamp, action, status) VALUES (40000, now(), 'x', 'done'), (40001, now(), 'x', 'SUCCESS')`, `DELETE FROM audit_log WHERE id >= 40000`, "2 rows"},
			{
				"too long", `ALTER TABLE audit_log ALTER event_version TYPE text; UPDATE audit_log SET event_version = repeat('ü', 21) WHERE id = 2`,
				`UPDATE audit_log SET event_version = repeat('ü', 20) WHERE id = 2`, "event_version is longer than 20 characters; ids 2",
			},
			{"null", `ALTER TABLE audit_log ALTER timestamp DROP NOT NULL; UPDATE audit_log SET timestamp = NULL WHERE id = 2`, `UPDATE audit_log SET timestamp = now() WHERE id = 2`, "timestamp is null; ids 2"},
			{"too large", `ALTER TABLE audit_log ALTER processing_latency TYPE bigint; UPDATE audit_log SET processing_latency = 3000000000 WHERE id = 2`, `UPDATE audit_log SET processing_latency = 3 WHERE id = 2`, "processing_latency is beyond"},
			{"no jsonb", `ALTER TABLE audit_log ALTER details TYPE json; UPDATE audit_log SET details = '{"a": "\u0000"}' WHERE id = 2`, `UPDATE audit_log SET details = NULL WHERE id = 2`, "or a key twice); ids 2"},
			{"a key twice", `ALTER TABLE audit_log ALTER details TYPE json; UPDATE audit_log SET details = '{"a": "a \" b", "c": [{"who": "alice", "who": "mallory"}]}' WHERE id = 2`, `UPDATE audit_log SET details = '{"who": {"who": [1, "who"]}}' WHERE id = 2`, "ids 2"},
			{"a policy's days", `UPDATE audit_retention_policy SET delete_after_days = 0 WHERE id = 7`, `UPDATE audit_retention_policy SET delete_after_days = 1 WHERE id = 7`, "delete_after_days"},
		} {
			if test.name == "unknown column" { // the first
				old(t, db)
			}
			conn := testkit.Connect(t, db)
			testkit.Exec(t, conn, test.sql)
			before := schemas(t, conn)
			for _, run := range []func() error{
				func() error { _, err := Check(t.Context(), options(db)); return err },
				func() error { _, err := Run(t.Context(), options(db)); return err },
			} {
				err := run()
				var refusal *Refusal
				require.True(t, errors.As(err, &refusal), "%s: %v", test.name, err)
				require.ErrorContains(t, err, test.want, test.name)
			}
			require.Equal(t, before, schemas(t, conn), test.name)
			testkit.Exec(t, conn, test.undo)
		}
		_, err := Run(t.Context(), options(db))
		require.NoError(t, err, "all is mended")
	})
}

// schemas is what a refused conversion must leave as it is.
func schemas(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	return testkit.Column[string](t, conn, `SELECT relnamespace::regnamespace || '.' || relname FROM pg_class WHERE relnamespace::regnamespace::text !~ '^pg_|information'
		UNION ALL SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1`)
}
