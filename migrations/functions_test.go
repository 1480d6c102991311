package migrations

import (
	"context"
	"testing"
	"time"

	"auditsink/internal/testkit"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

const (
	testTimeout = time.Minute
	testTick    = 20 * time.Millisecond
	boundLayout = "2006-01-02 15:04:05.000000"
)

// bound is a row of audit_log_partition_bounds(), with text in UTC.
type bound struct {
	Name, From, To     string
	Default, Detaching bool
}

func bounds(t *testing.T, conn *pgx.Conn) []bound {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
		SELECT partition_name, coalesce(to_char(lower_bound AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), ''),
		       coalesce(to_char(upper_bound AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), ''), is_default, is_detaching
		FROM audit_log_partition_bounds()`)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[bound])
	require.NoError(t, err)
	return all
}

// Bounds are UTC months whatever the session's zone: this one is a day ahead of UTC for 14 hours of every day, the other
// two behind it, and the date formats are ambiguous.
func TestCreatePartitionsInAnyTimeZone(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		for _, zone := range []string{"Pacific/Kiritimati", "Pacific/Pago_Pago", "Asia/Kolkata"} {
			t.Run(zone, func(t *testing.T) {
				conn := testkit.Connect(t, migrated(t, version))
				testkit.Exec(t, conn, `SET timezone = '`+zone+`'; SET datestyle = 'SQL, DMY'`)
				names := testkit.Column[string](t, conn, `SELECT create_audit_log_partitions()`)
				// The database's clock decides: recorded_at is that transaction's now().
				start := testkit.Column[time.Time](t, conn, `SELECT recorded_at FROM audit_partition_event LIMIT 1`)[0].UTC()

				month := time.Date(start.Year(), start.Month(), 1, 0, 0, 0, 0, time.UTC)
				var want []bound
				var wantNames []string
				for n := range 7 {
					from := month.AddDate(0, n, 0)
					name := from.Format("audit_log_2006_01")
					wantNames = append(wantNames, name)
					want = append(want, bound{Name: name, From: from.Format(boundLayout), To: from.AddDate(0, 1, 0).Format(boundLayout)})
				}
				require.Equal(t, wantNames, names)
				require.Equal(t, want, bounds(t, conn))

				require.Empty(t, testkit.Column[string](t, conn, `SELECT create_audit_log_partitions()`), "once is enough")
				require.Equal(t, want, bounds(t, conn))
			})
		}
	})
}

func TestCreatePartitionsLeavesCoveredMonthsAlone(t *testing.T) {
	conn := testkit.Connect(t, migrated(t, 15))
	testkit.Exec(t, conn, `CREATE TABLE odd PARTITION OF audit_log FOR VALUES FROM (MINVALUE) TO ('2400-01-01 00:00+00')`)
	require.Empty(t, testkit.Column[string](t, conn, `SELECT create_audit_log_partitions()`))
	testkit.Exec(t, conn, `DROP TABLE odd; CREATE TABLE odd PARTITION OF audit_log FOR VALUES FROM ('2000-01-01 00:00+00') TO (MAXVALUE)`)
	require.Empty(t, testkit.Column[string](t, conn, `SELECT create_audit_log_partitions()`))
}

func TestBoundsComeFromTheCatalog(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		conn := testkit.Connect(t, migrated(t, version))
		testkit.Exec(t, conn, `
			CREATE TABLE audit_log_1999_01 PARTITION OF audit_log FOR VALUES FROM (MINVALUE) TO ('2020-02-29 09:30:00.000001+00');
			CREATE TABLE "Odd ""name""" PARTITION OF audit_log FOR VALUES FROM ('2020-03-01 00:00+14') TO ('2020-04-01 00:00+00');
			CREATE TABLE last PARTITION OF audit_log FOR VALUES FROM ('2030-01-01 00:00+00') TO ('infinity');
			CREATE TABLE rest PARTITION OF audit_log DEFAULT`)
		testkit.Exec(t, conn, `SET timezone = 'Asia/Kolkata'; SET datestyle = 'ISO, DMY'`)
		require.ElementsMatch(t, []bound{
			{Name: "audit_log_1999_01", To: "2020-02-29 09:30:00.000001"},
			{Name: `Odd "name"`, From: "2020-02-29 10:00:00.000000", To: "2020-04-01 00:00:00.000000"},
			{Name: "last", From: "2030-01-01 00:00:00.000000"},
			{Name: "rest", Default: true},
		}, bounds(t, conn))
	})
}

func TestPartitionStats(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		conn := testkit.Connect(t, migrated(t, version))
		testkit.Exec(t, conn, `SELECT create_audit_log_partition('audit_log_2020_01', '2020-01-01 00:00+00', '2020-02-01 00:00+00')`)
		testkit.Exec(t, conn, `INSERT INTO audit_log (timestamp, action, status)
			SELECT '2020-01-15 00:00+00', 'a', 'success' FROM generate_series(1, 500)`)
		stats := `SELECT concat_ws(' ', partition_name, coalesce(record_count::text, 'unknown'), size_bytes = pg_total_relation_size('audit_log_2020_01'),
			size_bytes > index_bytes, size_pretty = pg_size_pretty(size_bytes), lower_bound AT TIME ZONE 'UTC', upper_bound AT TIME ZONE 'UTC')
			FROM get_audit_partition_stats()`
		require.Equal(t, []string{"audit_log_2020_01 unknown t t t 2020-01-01 00:00:00 2020-02-01 00:00:00"}, testkit.Column[string](t, conn, stats))
		testkit.Exec(t, conn, `ANALYZE audit_log_2020_01`)
		require.Equal(t, []string{"audit_log_2020_01 500 t t t 2020-01-01 00:00:00 2020-02-01 00:00:00"}, testkit.Column[string](t, conn, stats))
	})
}

// What the catalog doesn't say: how a partition stands to now, and its oldest and newest event, found without keeping a lock.
func TestPartitionStatsOfStatesAndEvents(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		conn := testkit.Connect(t, migrated(t, version))
		testkit.Exec(t, conn, `
			CREATE TABLE rest PARTITION OF audit_log DEFAULT;
			SELECT create_audit_log_partition('past', NULL, now() - interval '1 day');
			SELECT create_audit_log_partition('hot', now() - interval '1 day', now() + interval '1 day');
			SELECT create_audit_log_partition('future', now() + interval '1 day', now() + interval '2 days');
			SELECT create_audit_log_partition('"Gone" by hand', '2100-01-01', '2100-02-01');
			SELECT create_audit_log_partition('in grace', '2100-02-01', '2100-03-01');
			INSERT INTO audit_log (timestamp, action, status) VALUES ('2020-01-15 10:30+00', 'a', 'success'), ('2019-01-15 10:30+00', 'a', 'success'),
				('2100-02-03 00:00+00', 'a', 'success');
			ALTER TABLE audit_log DETACH PARTITION "in grace";
			ALTER TABLE audit_log DETACH PARTITION """Gone"" by hand";
			INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, state) VALUES ('in grace', 'drop', '2100-02-01', '2100-03-01', 'detached')`)
		stats := `SELECT concat_ws(' ', partition_name, state, coalesce((oldest_event AT TIME ZONE 'UTC')::text, '-'), coalesce((newest_event AT TIME ZONE 'UTC')::text, '-'),
			frozen_at IS NOT NULL, xid_age < 1000) FROM get_audit_partition_stats() ORDER BY state`
		tx, err := conn.Begin(t.Context())
		require.NoError(t, err)
		require.Equal(t, []string{
			"rest default - - f t", "in grace detached 2100-02-03 00:00:00 2100-02-03 00:00:00 f t", "future future - - f t", "hot hot - - f t",
			"past past 2019-01-15 10:30:00 2020-01-15 10:30:00 f t",
		}, testkit.Column[string](t, conn, stats))
		require.Empty(t, testkit.Column[string](t, conn, `SELECT relation::regclass::text FROM pg_locks WHERE pid = pg_backend_pid() AND relation IN ('past'::regclass, 'past_timestamp_idx'::regclass)`))
		require.NoError(t, tx.Rollback(t.Context()))

		// Frozen counts from the partition's latest creation on; without an index nothing is scanned; without the right to read, the rest is told.
		testkit.Exec(t, conn, `
			INSERT INTO audit_partition_event (partition_name, kind, state) VALUES ('past', 'vacuum', 'done'), ('hot', 'vacuum', 'verified'), ('future', 'vacuum', 'done'), ('future', 'create', 'done');
			ALTER TABLE "in grace" DROP CONSTRAINT "in grace_pkey";
			DROP INDEX "in grace_timestamp_idx", "in grace_timestamp_status_idx"`)
		testkit.Exec(t, conn, `CREATE ROLE stats_reader`)
		t.Cleanup(func() {
			_, err := conn.Exec(context.WithoutCancel(t.Context()), `RESET ROLE; DROP OWNED BY stats_reader; DROP ROLE stats_reader`)
			require.NoError(t, err)
		})
		testkit.Exec(t, conn, `GRANT SELECT ON audit_partition_event TO stats_reader; GRANT SELECT ON "in grace", hot TO stats_reader; SET ROLE stats_reader`)
		require.Equal(t, []string{
			"rest default - - f t", "in grace detached - - f t", "future future - - f t", "hot hot - - f t", "past past - - t t",
		}, testkit.Column[string](t, conn, stats))
	})
}

func TestDropOldOnlyRecordsRequests(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		conn := testkit.Connect(t, migrated(t, version))
		// Names tell nothing: the first is old by its name alone, the second by its bounds alone.
		testkit.Exec(t, conn, `
			SELECT create_audit_log_partition('audit_log_2001_01', now() - interval '2554 days', now() + interval '1 day');
			SELECT create_audit_log_partition('audit_log_2999_01', now() - interval '2600 days', now() - interval '2555 days');
			SELECT create_audit_log_partition('oldest', NULL, now() - interval '2600 days')`)
		testkit.Exec(t, conn, `SET timezone = 'Pacific/Kiritimati'`)
		before := relations(t, conn)

		asked := testkit.Column[string](t, conn, `SELECT partition_name FROM drop_old_audit_partitions()`)
		require.Equal(t, []string{"oldest", "audit_log_2999_01"}, asked)
		require.Equal(t, before, relations(t, conn), "nothing is dropped")

		requests := `SELECT concat_ws(' ', partition_name, kind, state, requested_by, lower_bound IS NULL, detail->>'retention_days', term)
			FROM audit_partition_event WHERE kind = 'drop' ORDER BY partition_name`
		want := []string{"audit_log_2999_01 drop requested postgres f 2555", "oldest drop requested postgres t 2555"}
		require.Equal(t, want, testkit.Column[string](t, conn, requests))

		// Asked again, the open requests are returned and none is added.
		require.Equal(t, asked, testkit.Column[string](t, conn, `SELECT partition_name FROM drop_old_audit_partitions(2555)`))
		require.Equal(t, want, testkit.Column[string](t, conn, requests))
		// Answered, it can be asked for anew.
		testkit.Exec(t, conn, `UPDATE audit_partition_event SET state = 'refused' WHERE kind = 'drop'`)
		require.Equal(t, asked, testkit.Column[string](t, conn, `SELECT partition_name FROM drop_old_audit_partitions()`))

		for _, days := range []string{"0", "-1", "NULL"} {
			_, err := conn.Exec(t.Context(), `SELECT drop_old_audit_partitions(`+days+`)`)
			requireCode(t, err, "22023")
		}
		require.Empty(t, testkit.Column[string](t, conn, `SELECT partition_name FROM drop_old_audit_partitions(36500)`))
	})
}

// A partition is as open, and as closed, as its parent: other owners, grants and default privileges notwithstanding.
func TestPartitionTakesOwnerGrantsAndRowSecurityOfItsParent(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		conn := testkit.Connect(t, migrated(t, version))
		testkit.Exec(t, conn, `CREATE ROLE "part owner"; CREATE ROLE part_reader; CREATE ROLE part_app`)
		t.Cleanup(func() {
			_, err := conn.Exec(context.WithoutCancel(t.Context()),
				`DROP OWNED BY "part owner", part_reader, part_app; DROP ROLE "part owner", part_reader, part_app`)
			require.NoError(t, err)
		})
		testkit.Exec(t, conn, `
			GRANT ALL ON SCHEMA public TO "part owner";
			ALTER TABLE audit_log OWNER TO "part owner";
			GRANT SELECT ON audit_log TO part_reader WITH GRANT OPTION;
			GRANT INSERT ON audit_log TO part_app;
			GRANT REFERENCES ON audit_log TO PUBLIC;
			REVOKE DELETE, TRUNCATE ON audit_log FROM "part owner";
			ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY;
			ALTER DEFAULT PRIVILEGES GRANT DELETE ON TABLES TO part_app, PUBLIC;
			SELECT create_audit_log_partition('audit_log_2020_01', '2020-01-01 00:00+00', '2020-02-01 00:00+00')`)
		access := `SELECT concat_ws(' ', relowner::regrole, relrowsecurity, string_agg(concat_ws(':', a.grantee, a.privilege_type, a.is_grantable), ',' ORDER BY a.grantee, a.privilege_type))
			FROM pg_class, aclexplode(relacl) a WHERE oid = $1::regclass GROUP BY relowner, relrowsecurity`
		require.Equal(t, testkit.Column[string](t, conn, access, "audit_log"), testkit.Column[string](t, conn, access, "audit_log_2020_01"))
	})
}
