package migrations

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/testkit"
)

var update = flag.Bool("update", false, "write testdata/schema.golden")

func TestMain(m *testing.M) { testkit.Main(m) }

// versions runs a test on the oldest and the newest Postgres that are supported.
func versions(t *testing.T, test func(t *testing.T, version int)) {
	t.Helper()
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) { test(t, version) })
	}
}

// migrated returns the URL of a database with the schema.
func migrated(t *testing.T, version int) string {
	t.Helper()
	db := testkit.Postgres(t, version)
	_, err := Apply(t.Context(), db)
	require.NoError(t, err)
	return db
}

// with sets a parameter of a database URL.
func with(t *testing.T, db, name, value string) string {
	t.Helper()
	u, err := url.Parse(db)
	require.NoError(t, err)
	query := u.Query()
	query.Set(name, value)
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20") // as libpq reads it
	return u.String()
}

func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, code, pg.Code, pg.Message)
}

// requireNoLock fails if an Apply that has returned left its session, and with it the lock, behind.
func requireNoLock(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	require.Eventually(t, func() bool { // a backend ends some time after its client
		return testkit.Column[int](t, conn, `SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
			WHERE locktype = 'advisory' AND datname = current_database()`)[0] == 0
	}, testTimeout, testTick)
}

// relations is everything in the schemas that aren't Postgres's own.
func relations(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	return testkit.Column[string](t, conn, `SELECT oid::regclass::text FROM pg_class
		WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace) ORDER BY 1`)
}

func TestSchemaIsTheGoldenOneOnEveryVersion(t *testing.T) {
	describe, err := os.ReadFile("testdata/describe.sql")
	require.NoError(t, err)
	versions(t, func(t *testing.T, version int) {
		conn := testkit.Connect(t, migrated(t, version))
		got := strings.Join(testkit.Column[string](t, conn, string(describe)), "\n") + "\n"
		if *update {
			require.NoError(t, os.WriteFile("testdata/schema.golden", []byte(got), 0o600))
		}
		golden, err := os.ReadFile("testdata/schema.golden")
		require.NoError(t, err)
		require.Equal(t, string(golden), got)
	})
}

// The names and columns that DESIGN §5 fixes, written out: the golden file could be renewed by mistake.
func TestFixedNames(t *testing.T) {
	conn := testkit.Connect(t, migrated(t, 18))

	var indexes []string
	for _, x := range []string{
		"action", "archived_at", "classification_retention", "correlation_id", "data_classification", "hash", "organization_id",
		"principal_action", "principal_id", "resource_type_id", "retention_policy", "status", "target_resource_id",
		"target_resource_type", "timestamp", "timestamp_status",
	} {
		indexes = append(indexes, "audit_log_"+x+"_idx")
	}
	indexes = append(indexes, "audit_log_pkey")
	require.ElementsMatch(t, indexes, testkit.Column[string](t, conn, `SELECT indexname::text FROM pg_indexes WHERE tablename = 'audit_log'`))

	for table, columns := range map[string]string{
		"audit_log": "id timestamp timestamp_text ttl principal_id organization_id action target_resource_type target_resource_id " +
			"status outcome_description hash hash_algorithm event_version correlation_id data_classification retention_policy " +
			"processing_latency archived_at details recorded_at lane_id lane_offset",
		"audit_lane":       "lane_id topic topic_id partition consumer_group epoch owner next_offset leader_epoch state updated_at",
		"audit_quarantine": "id lane_id lane_offset record_timestamp key value headers reason detail state recorded_at",
		"audit_gap":        "lane_id kind from_offset to_offset recorded_at",
	} {
		require.Equal(t, strings.Fields(columns), testkit.Column[string](t, conn,
			`SELECT column_name::text FROM information_schema.columns WHERE table_name = $1 ORDER BY ordinal_position`, table), table)
	}
	require.Equal(t, []string{"PRIMARY KEY (id, \"timestamp\")"}, testkit.Column[string](t, conn,
		`SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'audit_log_pkey'`))
}

func TestPoliciesAreSeededOnceAndStayEdited(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		db := migrated(t, version)
		conn := testkit.Connect(t, db)
		policies := func() []string {
			return testkit.Column[string](t, conn, `SELECT concat_ws(' ', policy_name, retention_days, archive_after_days,
				coalesce(delete_after_days::text, 'null'), data_classification, is_active, description <> '') FROM audit_retention_policy ORDER BY id`)
		}
		require.Equal(t, []string{
			"standard 2555 365 null INTERNAL t t", "phi_extended 2555 365 null PHI t t",
			"confidential 1825 365 null CONFIDENTIAL t t", "minimal 90 30 null PUBLIC t t",
		}, policies())

		testkit.Exec(t, conn, `UPDATE audit_retention_policy SET retention_days = 10 WHERE policy_name = 'minimal'`)
		testkit.Exec(t, conn, `DELETE FROM audit_retention_policy WHERE policy_name = 'standard'`)
		edited := policies()
		_, err := Apply(t.Context(), db)
		require.NoError(t, err)
		require.Equal(t, edited, policies())
	})
}

func TestApplyTwiceAndStatus(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		db := testkit.Postgres(t, version)
		conn := testkit.Connect(t, db)

		before, err := Status(t.Context(), db)
		require.NoError(t, err)
		require.Equal(t, known(), before)
		require.Empty(t, relations(t, conn), "Status must only read")

		applied, err := Apply(t.Context(), db)
		require.NoError(t, err)
		require.Len(t, applied, len(known()))
		created := relations(t, conn)

		again, err := Apply(t.Context(), db)
		require.NoError(t, err)
		require.Empty(t, again)
		require.Equal(t, created, relations(t, conn))

		after, err := Status(t.Context(), db)
		require.NoError(t, err)
		require.Equal(t, applied, after)
		now := testkit.Column[int64](t, conn, `SELECT extract(epoch FROM now())::bigint`)[0]
		for _, migration := range after {
			require.InDelta(t, now, migration.AppliedAt.Unix(), 600, "a local time was taken for UTC, or the reverse")
		}
	})
}

// The applied times are right whatever the zone of the role.
func TestStatusInAnotherTimeZone(t *testing.T) {
	db := with(t, testkit.Postgres(t, 15), "timezone", "Pacific/Kiritimati")
	_, err := Apply(t.Context(), db)
	require.NoError(t, err)
	status, err := Status(t.Context(), db)
	require.NoError(t, err)
	conn := testkit.Connect(t, db)
	require.InDelta(t, testkit.Column[int64](t, conn, `SELECT extract(epoch FROM now())::bigint`)[0], status[0].AppliedAt.Unix(), 600)
}

func TestTenApplyAtOnce(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		db := testkit.Postgres(t, version)
		var group errgroup.Group
		counts := make([]int, 10)
		for i := range counts {
			group.Go(func() error {
				applied, err := Apply(t.Context(), db)
				counts[i] = len(applied)
				return err
			})
		}
		require.NoError(t, group.Wait())
		total := 0
		for _, n := range counts {
			total += n
		}
		require.Equal(t, len(known()), total, "each migration is applied by one of them")
		require.NoError(t, Check(t.Context(), testkit.Connect(t, db)))
	})
}

func TestApplyAsOwnerWithoutSuperuser(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		db := testkit.Postgres(t, version)
		super := testkit.Connect(t, db)
		testkit.Exec(t, super, `CREATE ROLE owner_of_one LOGIN PASSWORD 'x'`)
		t.Cleanup(func() {
			ctx := context.WithoutCancel(t.Context())
			_, err := super.Exec(ctx, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO postgres', current_database()); END $$;
				DROP OWNED BY owner_of_one; DROP ROLE owner_of_one`)
			require.NoError(t, err)
		})
		testkit.Exec(t, super, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO owner_of_one', current_database()); END $$`)

		u, err := url.Parse(db)
		require.NoError(t, err)
		u.User = url.UserPassword("owner_of_one", "x")
		_, err = Apply(t.Context(), u.String())
		require.NoError(t, err)
		conn := testkit.Connect(t, u.String())
		require.NoError(t, Check(t.Context(), conn))
		require.Len(t, testkit.Column[string](t, conn, `SELECT create_audit_log_partitions()`), 7)
	})
}

func TestApplyInAnotherSchema(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		db := testkit.Postgres(t, version)
		super := testkit.Connect(t, db)
		testkit.Exec(t, super, `CREATE SCHEMA "Audit Log"; CREATE TABLE public.goose_db_version (id int)`)
		public := testkit.Column[string](t, super, `SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace`)

		scoped := with(t, db, "search_path", `"Audit Log", public`)
		_, err := Apply(t.Context(), scoped)
		require.NoError(t, err)
		require.NoError(t, Check(t.Context(), testkit.Connect(t, scoped)))
		require.ErrorIs(t, Check(t.Context(), super), ErrNoSchema)

		// The functions act on their own schema, also for somebody who has it not in the search path, or a temporary table
		// in the way.
		testkit.Exec(t, super, `CREATE TEMPORARY TABLE audit_log (i int); SET search_path = pg_temp`)
		require.Len(t, testkit.Column[string](t, super, `SELECT "Audit Log".create_audit_log_partitions()`), 7)
		require.Len(t, testkit.Column[string](t, super, `SELECT partition_name FROM "Audit Log".get_audit_partition_stats()`), 7)
		require.Empty(t, testkit.Column[string](t, super, `SELECT partition_name FROM "Audit Log".drop_old_audit_partitions()`))
		require.Equal(t, public, testkit.Column[string](t, super, `SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace`))
	})
}

func TestErrorsCanBeToldApart(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		db := testkit.Postgres(t, version)
		conn := testkit.Connect(t, db)
		missing, err := url.Parse(db)
		require.NoError(t, err)
		missing.Path = "/no_such_database"

		for _, test := range []struct{ name, url, code string }{
			{"missing database", missing.String(), "3D000"},
			{"read-only", with(t, db, "default_transaction_read_only", "on"), "25006"},
			{"missing schema", with(t, db, "search_path", "nowhere"), "3F000"},
		} {
			t.Run(test.name, func(t *testing.T) {
				_, err := Apply(t.Context(), test.url)
				requireCode(t, err, test.code)
				require.Empty(t, relations(t, conn))
				requireNoLock(t, conn)
			})
		}
		_, err = Status(t.Context(), missing.String())
		requireCode(t, err, "3D000")

		// Up to date and read-only is fine: there is nothing to write.
		_, err = Apply(t.Context(), db)
		require.NoError(t, err)
		applied, err := Apply(t.Context(), with(t, db, "default_transaction_read_only", "on"))
		require.NoError(t, err)
		require.Empty(t, applied)
	})
}

func TestWrongPassword(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15, Password: "right"})
	wrong, err := url.Parse(server.URL("postgres"))
	require.NoError(t, err)
	wrong.User = url.UserPassword("postgres", "wr0ng")
	_, err = Apply(t.Context(), wrong.String())
	requireCode(t, err, "28P01")
	require.NotContains(t, err.Error(), "wr0ng")
	_, err = Apply(t.Context(), server.URL("postgres"))
	require.NoError(t, err)
}

func TestSomebodyElsesAuditLogIsLeftAlone(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		for _, test := range []struct {
			name, sql, path string
			partitioned     bool
		}{
			{"plain table", `CREATE TABLE audit_log (id serial PRIMARY KEY, timestamp timestamptz)`, "public", false},
			{"view", `CREATE VIEW audit_log AS SELECT 1`, "public", false},
			{"partitioned by the replaced system", `CREATE TABLE audit_log (id int, timestamp timestamptz) PARTITION BY RANGE (timestamp)`, "public", true},
			{"plain table further down the path", `CREATE SCHEMA mine; CREATE TABLE audit_log (id int)`, "mine, public", false},
		} {
			t.Run(test.name, func(t *testing.T) {
				db := with(t, testkit.Postgres(t, version), "search_path", test.path)
				conn := testkit.Connect(t, db)
				testkit.Exec(t, conn, `SET search_path = public; `+test.sql+`; SET search_path = `+test.path)
				before := relations(t, conn)

				_, err := Apply(t.Context(), db)
				var table *TableError
				require.ErrorAs(t, err, &table)
				require.Equal(t, TableError{Table: "public.audit_log", Partitioned: test.partitioned}, *table)
				require.ErrorContains(t, err, "public.audit_log")
				require.Equal(t, before, relations(t, conn))
				requireNoLock(t, conn)

				require.ErrorAs(t, Check(t.Context(), conn), &table)
			})
		}

		t.Run("ours, but not in the current schema", func(t *testing.T) {
			db := migrated(t, version)
			conn := testkit.Connect(t, db)
			testkit.Exec(t, conn, `CREATE SCHEMA mine`)
			before := relations(t, conn)
			_, err := Apply(t.Context(), with(t, db, "search_path", "mine, public"))
			var table *TableError
			require.ErrorAs(t, err, &table)
			require.Equal(t, before, relations(t, conn))
		})
	})
}

func TestCheck(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		db := testkit.Postgres(t, version)
		conn := testkit.Connect(t, db)
		err := Check(t.Context(), conn)
		require.ErrorIs(t, err, ErrNoSchema)
		require.ErrorContains(t, err, "auditsink migrate up")

		_, err = Apply(t.Context(), db)
		require.NoError(t, err)
		require.NoError(t, Check(t.Context(), conn))

		testkit.Exec(t, conn, `INSERT INTO audit_schema_version (version_id, is_applied) VALUES (20990101000000, true)`)
		for _, check := range []func() error{
			func() error { return Check(t.Context(), conn) },
			func() error { _, err := Apply(t.Context(), db); return err },
		} {
			var differs *VersionError
			require.ErrorAs(t, check(), &differs)
			require.Equal(t, VersionError{Database: 20990101000000, Binary: Version()}, *differs)
			require.True(t, differs.Newer())
			require.ErrorContains(t, differs, "upgrade the binary")
		}
		status, err := Status(t.Context(), db)
		require.NoError(t, err)
		require.Equal(t, int64(20990101000000), status[len(status)-1].Version)
		require.Empty(t, status[len(status)-1].Name)

		testkit.Exec(t, conn, `DELETE FROM audit_schema_version WHERE version_id >= $1`, Version())
		var differs *VersionError
		err = Check(t.Context(), conn)
		require.ErrorAs(t, err, &differs)
		require.False(t, differs.Newer())
		require.ErrorContains(t, err, "auditsink migrate up")
	})
}

// A migration that fails leaves those before it applied, and says which they were.
func TestApplyReportsWhatItAppliedBeforeAFailure(t *testing.T) {
	db := testkit.Postgres(t, 15)
	conn := testkit.Connect(t, db)
	testkit.Exec(t, conn, `CREATE FUNCTION get_audit_partition_stats() RETURNS int LANGUAGE sql AS 'SELECT 1'`)
	applied, err := Apply(t.Context(), db)
	requireCode(t, err, "42723")
	require.Len(t, applied, 1)
	require.Equal(t, int64(1), applied[0].Version)

	testkit.Exec(t, conn, `DROP FUNCTION get_audit_partition_stats()`)
	applied, err = Apply(t.Context(), db)
	require.NoError(t, err)
	require.Len(t, applied, len(known())-1)
}

func TestApplyStopsWithItsContext(t *testing.T) {
	db := testkit.Postgres(t, 15)
	conn := testkit.Connect(t, db)
	testkit.Exec(t, conn, `SELECT pg_advisory_lock($1)`, int64(lockID)) // another replica that never comes back
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	result := make(chan error)
	go func() {
		_, err := Apply(ctx, db)
		result <- err
	}()
	require.Eventually(t, func() bool {
		return testkit.Column[bool](t, conn, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid() AND state = 'idle')`)[0]
	}, testTimeout, testTick)
	cancel(stop)
	require.ErrorIs(t, <-result, stop)
	require.Empty(t, relations(t, conn))
}
