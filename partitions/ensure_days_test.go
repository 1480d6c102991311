package partitions

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// By the day, whatever a session may have been set to; with history by the month, up to today.
func TestEnsureDays(t *testing.T) {
	schedule := Schedule{Interval: Day, Ahead: 2}
	next := []Step{
		step("audit_log_2026_12_31", "2026-12-31", "2027-01-01"),
		step("audit_log_2027_01_01", "2027-01-01", "2027-01-02"),
		step("audit_log_2027_01_02", "2027-01-02", "2027-01-03"),
	}
	for _, parameters := range [][]string{
		nil,
		{"timezone", "Pacific/Kiritimati", "datestyle", "SQL, DMY", "default_transaction_isolation", "serializable"},
		{"default_query_exec_mode", "exec", "timezone", "Pacific/Pago_Pago"},
	} {
		t.Run(strings.Join(parameters, " "), func(t *testing.T) {
			versions(t, func(t *testing.T, db string) {
				pool := open(t, db, parameters...)
				created, err := Ensure(t.Context(), pool, now.In(time.FixedZone("+14", 14*3600)), schedule)
				require.NoError(t, err)
				require.Equal(t, next, created)
				created, err = EnsureFor(t.Context(), pool, now, now.Sub(at("2024-02-01")), schedule, days("2026-12-24", "2024-02-29", "2027-01-02"))
				require.NoError(t, err)
				late := []Step{step("audit_log_2024_02", "2024-02-01", "2024-03-01"), step("audit_log_2026_12", "2026-12-01", "2026-12-31")}
				require.Equal(t, late, created)
				got, err := List(t.Context(), pool)
				require.NoError(t, err)
				require.Equal(t, append(asBounds(late), asBounds(next)...), got)
				for _, timestamp := range []string{"2024-02-29T23:59:59Z", "2026-12-30T23:59:59Z", "2026-12-31", "2027-01-02T23:59:59Z"} {
					insert(t, pool, timestamp)
				}
				require.Equal(t, []string{"1 audit_log_2024_02", "2 audit_log_2026_12", "3 audit_log_2026_12_31", "4 audit_log_2027_01_02"},
					column[string](t, pool, `SELECT id || ' ' || tableoid::regclass FROM audit_log ORDER BY id`))

				// The DBA's function makes months, and leaves those alone that days are in.
				exec(t, pool, `DROP TABLE audit_log_2024_02, audit_log_2026_12, audit_log_2026_12_31`)
				sql := column[string](t, pool, `SELECT create_audit_log_partitions()`)
				require.NotContains(t, sql, "audit_log_2027_01", "the days are in it")
			})
		})
	}
}

// Tables and whatever else has a similar name are left alone, and are in nobody's way unless the name is the same.
func TestSimilarNames(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		exec(t, pool, `
			CREATE TABLE audit_log_archive (LIKE audit_log);
			CREATE TABLE audit_log_2026 (LIKE audit_log) PARTITION BY RANGE (timestamp);
			CREATE TABLE audit_log_2026_1 PARTITION OF audit_log_2026 FOR VALUES FROM ('2026-12-01 00:00+00') TO ('2027-01-01 00:00+00');
			CREATE TABLE audit_logs_2026_12 ();
			CREATE TABLE audit_log_2026_123 ();
			CREATE TABLE "Audit_log_2026_12" ();
			CREATE TABLE audit_log_2026_12_backup AS SELECT 1 AS one;
			CREATE SCHEMA other;
			CREATE TABLE other.audit_log (timestamp timestamptz) PARTITION BY RANGE (timestamp);
			CREATE TABLE other.audit_log_2026_12 PARTITION OF other.audit_log FOR VALUES FROM ('2026-12-01 00:00+00') TO ('2027-01-01 00:00+00');
			CREATE TYPE other.audit_log_2027_01 AS ENUM ('a');
			CREATE VIEW other.audit_log_2027_02 AS SELECT 1;
			CREATE FUNCTION audit_log_2027_03() RETURNS int LANGUAGE sql AS 'SELECT 1'`)
		all := `SELECT oid::regclass || ' ' || oid || ' ' || coalesce(pg_get_expr(relpartbound, oid), '') FROM pg_class
			WHERE relname ~* '^audit_logs?_(archive|2026|2026_1|2026_12|2026_123|2026_12_backup|2027_02)$' AND NOT EXISTS (
				SELECT FROM pg_inherits WHERE inhrelid = oid AND inhparent = 'public.audit_log'::regclass) ORDER BY 1`
		before := column[string](t, pool, all)
		require.Len(t, before, 9)
		created, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
		require.NoError(t, err)
		require.Equal(t, nextSeven, created)
		require.Equal(t, before, column[string](t, pool, all))
		require.Equal(t, 7, column[int](t, pool, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'public.audit_log'::regclass`)[0])
	})
}

// Whatever kind of thing has the name, it is told, and the rest is created.
func TestNamesInTheWay(t *testing.T) {
	for name, sql := range map[string]string{
		"a table":             `CREATE TABLE audit_log_2027_02 ()`,
		"a view":              `CREATE VIEW audit_log_2027_02 AS SELECT 1`,
		"a materialized view": `CREATE MATERIALIZED VIEW audit_log_2027_02 AS SELECT 1`,
		"a sequence":          `CREATE SEQUENCE audit_log_2027_02`,
		"an index":            `CREATE INDEX audit_log_2027_02 ON audit_retention_policy (description)`,
		"a composite type":    `CREATE TYPE audit_log_2027_02 AS (one int)`,
		"an enum":             `CREATE TYPE audit_log_2027_02 AS ENUM ('one')`,
		"a domain":            `CREATE DOMAIN audit_log_2027_02 AS int`,
		"another's partition": `CREATE TABLE other (timestamp timestamptz) PARTITION BY RANGE (timestamp); CREATE TABLE audit_log_2027_02 PARTITION OF other DEFAULT`,
	} {
		t.Run(name, func(t *testing.T) {
			versions(t, func(t *testing.T, db string) {
				pool := open(t, db)
				exec(t, pool, sql)
				created, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 3})
				var taken *NameTakenError
				require.ErrorAs(t, err, &taken)
				require.Equal(t, nextSeven[2], taken.Step)
				require.Equal(t, []Step{nextSeven[0], nextSeven[1], nextSeven[3]}, created)
			})
		})
	}
}

// A partition in its grace period keeps its range and its name.
func TestEnsureForKeepsOffWhatIsDetached(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		horizon := now.Sub(at("2025-01-01"))
		_, err := Ensure(t.Context(), pool, now, Schedule{})
		require.NoError(t, err)
		exec(t, pool, `
			SELECT create_audit_log_partition('audit_log_2025_03', '2025-03-01 00:00+00', '2025-03-10 00:00+00');
			SELECT create_audit_log_partition('audit_log_2025_03_12', '2025-03-12 00:00+00', '2025-03-13 00:00+00');
			SELECT create_audit_log_partition('audit_log_2025_03_20', '2025-03-20 00:00+00', '2025-03-21 00:00+00');
			ALTER TABLE audit_log DETACH PARTITION audit_log_2025_03;
			ALTER TABLE audit_log DETACH PARTITION audit_log_2025_03_12;
			INSERT INTO audit_partition_event (partition_name, kind, state, lower_bound, upper_bound, row_count, detail) VALUES
				('audit_log_2025_03', 'drop', 'detached', '2025-03-01 00:00+00', '2025-03-10 00:00+00', 0, '{}'),
				('audit_log_2025_03_12', 'drop', 'verified', '2025-03-12 00:00+00', '2025-03-13 00:00+00', 0, '{}'),
				('audit_log_2025_03_20', 'drop', 'verified', '2025-03-20 00:00+00', '2025-03-21 00:00+00', 0, '{}'),
				('audit_log_2025_04', 'drop', 'done', '2025-04-01 00:00+00', '2025-05-01 00:00+00', 0, '{}')`)
		created, err := EnsureFor(t.Context(), pool, now, horizon, Schedule{}, days("2025-03-11", "2025-03-15", "2025-03-20", "2025-03-21", "2025-04-01"))
		require.NoError(t, err)
		require.Equal(t, []Step{
			step("audit_log_2025_03_10", "2025-03-10", "2025-03-12"),
			step("audit_log_2025_03_13", "2025-03-13", "2025-03-20"),
			step("audit_log_2025_03_21", "2025-03-21", "2025-04-01"),
			step("audit_log_2025_04", "2025-04-01", "2025-05-01"),
		}, created)
		// Asked for itself, it comes back, and what is beside it stays.
		created, err = EnsureFor(t.Context(), pool, now, horizon, Schedule{}, days("2025-03-05"))
		require.NoError(t, err)
		require.Equal(t, []Step{step("audit_log_2025_03", "2025-03-01", "2025-03-10")}, created)
		catalog, err := read(t.Context(), pool)
		require.NoError(t, err)
		require.Equal(t, []Bounds{part("audit_log_2025_03_12", "2025-03-12", "2025-03-13")}, catalog.Detached)
	})
}

// No clock, however wrong, makes a partition.
func TestEnsureForWildTimes(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db)
		wild := []time.Time{
			{},
			time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-4713, 1, 1, 0, 0, 0, 0, time.UTC), at("1970-01-01"), at("2097-01-01"), at("9999-12-31"),
			time.Date(52217, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(294276, 12, 31, 0, 0, 0, 0, time.UTC), time.UnixMicro(1 << 62),
		}
		for _, schedule := range []Schedule{{Ahead: 6}, {Interval: Day, Ahead: 6}} {
			created, err := EnsureFor(t.Context(), pool, now, 2555*24*time.Hour, schedule, wild)
			var refused *RangeError
			require.ErrorAs(t, err, &refused)
			require.Equal(t, wild, refused.Refused)
			require.Empty(t, created)
			require.Empty(t, column[string](t, pool, `SELECT partition_name FROM audit_log_partition_bounds()`))
		}
		// Beside a good one, only that is served.
		created, err := EnsureFor(t.Context(), pool, now, 2555*24*time.Hour, Schedule{Interval: Day}, append(wild, at("2026-12-31T23:00:00Z")))
		require.Error(t, err)
		require.Equal(t, []Step{step("audit_log_2026_12_31", "2026-12-31", "2027-01-01")}, created)
	})
}

// Look shows what Ensure would create, on a server that takes no writes, and which months days shall take the place of.
func TestLook(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool, standby := open(t, db), open(t, db, "default_transaction_read_only", "on", "timezone", "Pacific/Kiritimati")
		p, err := Look(t.Context(), standby, now, Schedule{Ahead: 6})
		require.NoError(t, err)
		require.Equal(t, Preview{Create: nextSeven, ReadyUntil: now}, p)
		_, err = Ensure(t.Context(), pool, now, Schedule{Ahead: 6})
		require.NoError(t, err)
		p, err = Look(t.Context(), standby, now, Schedule{Ahead: 6})
		require.NoError(t, err)
		require.Equal(t, Preview{ReadyUntil: at("2027-07-01")}, p)

		insert(t, pool, "2027-04-01")
		insert(t, pool, "2027-04-30T23:59:59Z")
		p, err = Look(t.Context(), standby, at("2026-12-29"), Schedule{Interval: Day, Ahead: 4})
		require.NoError(t, err)
		months := asBounds(nextSeven)
		require.Equal(t, Preview{Replace: []Bounds{months[2], months[3], months[5], months[6]}, Keep: []Bounds{months[4]}, ReadyUntil: at("2027-07-01")}, p)

		exec(t, pool, `CREATE TABLE rest PARTITION OF audit_log DEFAULT`)
		_, err = Look(t.Context(), standby, now, Schedule{Ahead: 8})
		var def *DefaultPartitionError
		require.ErrorAs(t, err, &def)
		var pg *pgconn.PgError
		exec(t, pool, `DROP FUNCTION audit_log_partition_bounds CASCADE`)
		_, err = Look(t.Context(), standby, now, Schedule{})
		require.ErrorAs(t, err, &pg)
	})
}
