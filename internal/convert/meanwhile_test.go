package convert

import (
	"errors"
	"strings"
	"testing"

	"auditsink/internal/testkit"

	"github.com/stretchr/testify/require"
)

// What others attach to the old table while it is converted would point to the replaced one, or be lost: the swap refuses as a first run does.
func TestObstaclesThatComeLate(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		for _, test := range []struct{ sql, undo, want string }{
			{`CREATE VIEW failures AS SELECT * FROM audit_log WHERE status = 'failure'`, `DROP VIEW failures`, "view public.failures"},
			{`ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY`, `ALTER TABLE audit_log DISABLE ROW LEVEL SECURITY`, "row security"},
			{`CREATE TABLE comments (audit_log_id int REFERENCES audit_log)`, `DROP TABLE comments`, "drop the foreign key"},
			{`CREATE PUBLICATION pub FOR TABLE audit_log`, `DROP PUBLICATION pub`, "publication"},
			{`CREATE TABLE audit_log_2024_05 (id int)`, `DROP TABLE audit_log_2024_05`, "audit_log_2024_05"},
		} {
			_, err := runUntil(t, db, "swapping", func() { testkit.Exec(t, conn, test.sql) })
			var refusal *Refusal
			require.True(t, errors.As(err, &refusal), "%s: %v", test.sql, err)
			require.ErrorContains(t, err, test.want)
			testkit.Exec(t, conn, test.undo)
		}
		_, err := Run(t.Context(), options(db))
		require.NoError(t, err)
	})
}

// Grants that are given or taken while the table is converted hold for the new one and its partitions.
func TestGrantsThatChangeMeanwhile(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		roles(t, conn, "conv_comes", "conv_goes", "conv_column")
		testkit.Exec(t, conn, `GRANT SELECT ON audit_log TO conv_goes; GRANT SELECT (action) ON audit_log TO conv_column`)
		_, err := runUntil(t, db, "swapping", func() {
			testkit.Exec(t, conn, `GRANT SELECT ON audit_log TO conv_comes; REVOKE ALL ON audit_log FROM conv_goes, conv_column; REVOKE SELECT (action) ON audit_log FROM conv_column`)
		})
		require.NoError(t, err)
		require.Equal(t, []string{"t f f"}, testkit.Column[string](t, conn, `SELECT DISTINCT concat_ws(' ', has_table_privilege('conv_comes', oid, 'SELECT'), has_table_privilege('conv_goes', oid, 'SELECT'), has_any_column_privilege('conv_column', oid, 'SELECT'))
			FROM pg_class WHERE relname ~ '^audit_log(_\d{4}_\d\d)?$' AND relnamespace = 'public'::regnamespace`))
	})
}

// A member of the owning role converts without being the owner or a superuser; a function that it can't move is told before anything is changed.
func TestConvertAsMember(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		super := testkit.Connect(t, db)
		roles(t, super, "conv_owning", "conv_member")
		testkit.Exec(t, super, `DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %1$I TO conv_member; REVOKE TEMPORARY ON DATABASE %1$I FROM PUBLIC', current_database()); END $$;
			GRANT ALL ON SCHEMA public TO conv_owning, conv_member; GRANT conv_owning TO conv_member; SET ROLE conv_owning`)
		testkit.Exec(t, super, replacedSchema+replacedRows+`; RESET ROLE; CREATE FUNCTION get_audit_partition_stats() RETURNS int LANGUAGE sql AS 'SELECT 1'`)
		before, relations := content(t, super, "audit_log"), schemas(t, super)
		member := strings.Replace(db, "postgres@", "conv_member@", 1)
		_, err := Run(t.Context(), options(member))
		require.ErrorAs(t, err, new(*Refusal))
		require.ErrorContains(t, err, "function public.get_audit_partition_stats() belongs to postgres")
		require.Equal(t, relations, schemas(t, super))
		testkit.Exec(t, super, `ALTER FUNCTION get_audit_partition_stats() OWNER TO conv_owning`)
		_, err = Run(t.Context(), options(member))
		require.NoError(t, err)
		require.Equal(t, before, content(t, super, "audit_log"))
		require.Equal(t, []string{"conv_owning"}, testkit.Column[string](t, super, `SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname ~ '^audit_(log(_\d{4}_\d\d)?|integrity_log|retention_policy)$' AND relnamespace = 'public'::regnamespace`))
		_, err = DropReplaced(t.Context(), options(member))
		require.NoError(t, err)
	})
}

// Logical replication would go on to look for the table it knows, and silently store nothing.
func TestSubscriptionIsRefused(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		testkit.Exec(t, conn, `CREATE SUBSCRIPTION conv_sub CONNECTION 'dbname=nothing' PUBLICATION p WITH (connect = false)`)
		testkit.Exec(t, conn, `INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate) SELECT oid, 'audit_log'::regclass, 'r' FROM pg_subscription WHERE subname = 'conv_sub'`) // as REFRESH does
		defer testkit.Exec(t, conn, `DELETE FROM pg_subscription_rel; ALTER SUBSCRIPTION conv_sub SET (slot_name = NONE); DROP SUBSCRIPTION conv_sub`)
		_, err := Run(t.Context(), options(db))
		require.ErrorAs(t, err, new(*Refusal))
		require.ErrorContains(t, err, "subscription conv_sub writes to public.audit_log")
	})
}

// What others have put beside the replaced table is not dropped with it.
func TestDropReplacedKeepsWhatIsOthers(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		_, err := Run(t.Context(), options(db))
		require.NoError(t, err)
		testkit.Exec(t, conn, `CREATE TABLE audit_replaced.of_the_auditor AS SELECT 1 AS precious`)
		_, err = DropReplaced(t.Context(), options(db))
		require.ErrorContains(t, err, "of_the_auditor")
		require.Equal(t, []string{"audit_replaced.of_the_auditor", "audit_replaced.audit_log"}, testkit.Column[string](t, conn, `SELECT unnest(ARRAY['audit_replaced.of_the_auditor', 'audit_replaced.audit_log'])::regclass::text`))
		testkit.Exec(t, conn, `DROP TABLE audit_replaced.of_the_auditor`)
		_, err = DropReplaced(t.Context(), options(db))
		require.NoError(t, err)
	})
}

// A long reader of a side table holds the swap up, and the one wait for all tables ends in time.
func TestSwapWaitsForAReaderOfASideTable(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		old(t, db)
		reader, err := testkit.Connect(t, db).Begin(t.Context())
		require.NoError(t, err)
		_, err = reader.Exec(t.Context(), `SELECT count(*) FROM audit_retention_policy`)
		require.NoError(t, err)
		tried := 0
		o := options(db)
		o.Report = func(p Progress) {
			if p.Stage == "swapping" && strings.Contains(p.Note, "idle in transaction") { // the one in the way is named, whichever table it uses
				if tried++; tried == 2 {
					require.NoError(t, reader.Rollback(t.Context()))
				}
			}
		}
		_, err = Run(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, 2, tried)
	})
}
