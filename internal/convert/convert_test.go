package convert

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/testkit"
	"auditsink/migrations"
)

func TestConvert(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		// As the replaced system had them, under names that ours have.
		testkit.Exec(t, conn, `CREATE FUNCTION get_audit_partition_stats() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE TABLE audit_log_archive (id int)`)
		before := content(t, conn, "audit_log")
		last := testkit.Column[int64](t, conn, `SELECT last_value FROM audit_log_id_seq`)[0]
		_, err := migrations.Apply(t.Context(), db)
		require.ErrorContains(t, err, "auditsink migrate convert")

		plan, err := Check(t.Context(), options(db))
		require.NoError(t, err)
		require.EqualValues(t, len(before), plan.Rows)
		require.Equal(t, before, content(t, conn, "audit_log"))
		require.Empty(t, testkit.Column[string](t, conn, `SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'audit%'`), "a dry run changes nothing")

		s, err := Run(t.Context(), options(db))
		require.NoError(t, err)
		require.EqualValues(t, len(before), s.Rows)
		require.Equal(t, plan.Months, s.Months)
		require.True(t, s.Replaced)
		require.Equal(t, before, content(t, conn, "audit_log"))
		require.Equal(t, before, content(t, conn, "audit_replaced.audit_log"))
		require.NoError(t, migrations.Check(t.Context(), conn))

		// Ids go on after all that were ever given.
		require.Equal(t, []int64{last + 1}, testkit.Column[int64](t, conn, `INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'new', 'success') RETURNING id`))
		require.Equal(t, []int64{10}, testkit.Column[int64](t, conn, `INSERT INTO audit_retention_policy (policy_name, retention_days, data_classification) VALUES ('x', 1, 'PHI') RETURNING id`))
		testkit.Exec(t, conn, `DELETE FROM audit_log WHERE action = 'new'; DELETE FROM audit_retention_policy WHERE policy_name = 'x'`)
		// Policies are those that operators have made of them.
		require.Equal(t, []string{"3 standard 4000", "7 our own 30"}, testkit.Column[string](t, conn, `SELECT concat_ws(' ', id, policy_name, retention_days) FROM audit_retention_policy ORDER BY id`))
		require.Equal(t, testkit.Column[string](t, conn, `SELECT (id, audit_log_id, verification_timestamp, verification_details)::text FROM audit_replaced.audit_integrity_log ORDER BY id`),
			testkit.Column[string](t, conn, `SELECT (id, audit_log_id, verification_timestamp, verification_details)::text FROM audit_integrity_log ORDER BY id`))
		// What each partition has got is on record.
		require.Equal(t, testkit.Column[string](t, conn, `SELECT concat_ws(' ', tableoid::regclass, count(*)) FROM audit_log GROUP BY tableoid ORDER BY 1`),
			testkit.Column[string](t, conn, `SELECT concat_ws(' ', partition_name, row_count) FROM audit_partition_event WHERE kind = 'convert' AND state = 'done' ORDER BY 1`))
		require.Equal(t, []bool{true}, testkit.Column[bool](t, conn, `SELECT relallvisible = relpages AND relpages > 0 AND reltuples > 0 FROM pg_class WHERE relname = 'audit_log_2014_12'`), "vacuumed and analyzed")

		testkit.Exec(t, conn, `DROP TABLE audit_log_archive`)
		requireFresh(t, conn)
		require.Empty(t, testkit.Column[string](t, conn, `SELECT nspname::text FROM pg_namespace WHERE nspname = 'audit_convert'`))
		require.Len(t, testkit.Column[string](t, conn, `SELECT partition_name FROM get_audit_partition_stats()`), plan.Months+7, "November has rows of before")

		again, err := Run(t.Context(), options(db))
		require.NoError(t, err)
		require.True(t, again.Nothing && again.Replaced)
		require.ErrorIs(t, Rollback(t.Context(), options(db)), ErrSwapped)

		// Not a row of it may have changed since.
		testkit.Exec(t, conn, `UPDATE audit_replaced.audit_log SET action = 'changed' WHERE id = 1`)
		_, err = DropReplaced(t.Context(), options(db))
		require.ErrorAs(t, err, new(*ChangedError))
		testkit.Exec(t, conn, `UPDATE audit_replaced.audit_log SET action = 'last.of.year' WHERE id = 1`)
		d, err := DropReplaced(t.Context(), options(db))
		require.NoError(t, err)
		require.EqualValues(t, len(before), d.Rows)
		require.Equal(t, before, content(t, conn, "audit_log"))
		require.Empty(t, testkit.Column[string](t, conn, `SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'audit%'`))
		_, err = DropReplaced(t.Context(), options(db))
		require.ErrorIs(t, err, ErrNothing)
	})
}

// requireFresh requires the schema that `migrate up` makes, with the same partitions, and nothing else.
func requireFresh(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	version := testkit.Column[int](t, conn, `SELECT current_setting('server_version_num')::int / 10000`)[0]
	url := testkit.Postgres(t, version)
	_, err := migrations.Apply(t.Context(), url)
	require.NoError(t, err)
	fresh := testkit.Connect(t, url)
	for _, sql := range testkit.Column[string](t, conn, `SELECT format('SELECT create_audit_log_partition(%L, %L, %L)', partition_name, lower_bound, upper_bound) FROM audit_log_partition_bounds()`) {
		testkit.Exec(t, fresh, sql)
	}
	require.Equal(t, schema(t, fresh), schema(t, conn))
}

// Other types that mean the same, a schema and tables with odd names, no tables but the one, columns that are missing.
func TestConvertOtherTypes(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		setup := testkit.Connect(t, db)
		testkit.Exec(t, setup, `CREATE SCHEMA "Audit Log"`)
		db += "&search_path=" + `%22Audit%20Log%22`
		conn := testkit.Connect(t, db)
		testkit.Exec(t, conn, `SET timezone = 'Asia/Kolkata';
			CREATE TABLE audit_log (details json, id bigint PRIMARY KEY, action text NOT NULL, status text, "timestamp" timestamp(3) without time zone, outcome_description varchar(30), processing_latency bigint);
			CREATE INDEX ON audit_log ("timestamp" DESC);
			INSERT INTO audit_log SELECT '{"b": 1, "a": [1.0]}', i, 'a', 'success', '2024-02-29 23:59:59.999'::timestamp + i * interval '1 month', 'ü', i FROM generate_series(-3, 10) i`)
		s, err := Run(t.Context(), options(db))
		require.NoError(t, err)
		require.EqualValues(t, 14, s.Rows)
		require.Equal(t, []string{"2023-11-29 23:59:59.999", "2024-12-29 23:59:59.999"}, testkit.Column[string](t, conn, `SELECT ("timestamp" AT TIME ZONE 'UTC')::text FROM audit_log WHERE id IN (-3, 10) ORDER BY id`))
		require.Equal(t, []string{"14 t t"}, testkit.Column[string](t, conn, `SELECT concat_ws(' ', count(*), bool_and(details = '{"a": [1.0], "b": 1}'), bool_and(retention_policy IS NULL)) FROM audit_log`))
		require.Equal(t, []int64{11}, testkit.Column[int64](t, conn, `INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'new', 'success') RETURNING id`))
		require.Len(t, testkit.Column[string](t, conn, `SELECT policy_name::text FROM audit_retention_policy`), 4, "the usual ones")
		require.NoError(t, migrations.Check(t.Context(), conn))
	})
}

func TestConvertNothing(t *testing.T) {
	db := testkit.Postgres(t, 18)
	_, err := Run(t.Context(), options(db))
	require.ErrorIs(t, err, migrations.ErrNoSchema)
	require.ErrorIs(t, Rollback(t.Context(), options(db)), migrations.ErrNoSchema)
	conn := testkit.Connect(t, db)
	testkit.Exec(t, conn, replacedSchema)
	require.ErrorIs(t, Rollback(t.Context(), options(db)), ErrNothing)
	_, err = DropReplaced(t.Context(), options(db))
	require.ErrorContains(t, err, "not converted yet")
	s, err := Run(t.Context(), options(db))
	require.NoError(t, err, "without a row")
	require.Zero(t, s.Rows)
	require.Equal(t, []int64{1}, testkit.Column[int64](t, conn, `INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'new', 'success') RETURNING id`))
}

func TestTwoConversionsAtOnce(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		before := content(t, conn, "audit_log")
		var group errgroup.Group
		summaries := make([]Summary, 3)
		for i := range summaries {
			group.Go(func() (err error) {
				summaries[i], err = Run(t.Context(), options(db))
				return err
			})
		}
		require.NoError(t, group.Wait())
		var worked int
		for _, s := range summaries {
			if !s.Nothing {
				worked++
			}
		}
		require.Equal(t, 1, worked)
		require.Equal(t, before, content(t, conn, "audit_log"))
	})
}

// Who could read and write the old table can do so with the new one and all its partitions, and nobody else.
func TestOwnerAndGrantsAreKept(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		roles(t, conn, "conv_owner", "conv_app", "conv_reader")
		testkit.Exec(t, conn, `GRANT ALL ON SCHEMA public TO conv_owner; ALTER TABLE audit_log OWNER TO conv_owner; GRANT SELECT, INSERT ON audit_log TO conv_app WITH GRANT OPTION;
			GRANT SELECT (id, action) ON audit_log TO conv_reader; GRANT USAGE ON SEQUENCE audit_log_id_seq TO conv_app; GRANT SELECT ON audit_retention_policy TO PUBLIC`)
		_, err := Run(t.Context(), options(db))
		require.NoError(t, err)
		access := `SELECT concat_ws(' ', c.relowner::regrole, string_agg(concat_ws(':', a.grantee::regrole, a.privilege_type, a.is_grantable), ',' ORDER BY a.grantee, a.privilege_type))
			FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = $1::text::regclass GROUP BY c.relowner`
		for _, name := range []string{"audit_log", "audit_log_id_seq", "audit_retention_policy"} {
			require.Equal(t, testkit.Column[string](t, conn, access, "audit_replaced."+name), testkit.Column[string](t, conn, access, name), name)
		}
		require.Equal(t, testkit.Column[string](t, conn, access, "audit_log"), testkit.Column[string](t, conn, access, "audit_log_2014_12"))
		testkit.Exec(t, conn, `SET ROLE conv_reader; SELECT id, action FROM audit_log`)
		_, err = conn.Exec(t.Context(), `SELECT status FROM audit_log`)
		require.ErrorContains(t, err, "permission denied")
		testkit.Exec(t, conn, `RESET ROLE`)
	})
}

// roles makes roles, which all databases of a server share, for the time of a test.
func roles(t *testing.T, conn *pgx.Conn, names ...string) {
	t.Helper()
	list := strings.Join(names, ", ")
	for _, name := range names {
		testkit.Exec(t, conn, `CREATE ROLE `+name+` LOGIN`)
	}
	t.Cleanup(func() {
		_, err := conn.Exec(context.WithoutCancel(t.Context()), `RESET ROLE; DROP OWNED BY `+list+` CASCADE; DROP ROLE `+list)
		require.NoError(t, err)
	})
}

// The owner of the tables, who is no superuser, can convert them.
func TestConvertAsOwner(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		super := testkit.Connect(t, db)
		roles(t, super, "conv_plain")
		testkit.Exec(t, super, `DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO conv_plain', current_database()); END $$; GRANT ALL ON SCHEMA public TO conv_plain; SET ROLE conv_plain`)
		testkit.Exec(t, super, replacedSchema+replacedRows+`; RESET ROLE`)
		before := content(t, super, "audit_log")
		owner := strings.Replace(db, "postgres@", "conv_plain@", 1)
		_, err := Run(t.Context(), options(owner))
		require.NoError(t, err)
		require.Equal(t, before, content(t, super, "audit_log"))
	})
}
