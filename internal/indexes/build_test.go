package indexes

import (
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// TestDefinitions: what we say of an index is what Postgres says of it, on audit_log and on a partition, so that it is recognized whatever its name is.
func TestDefinitions(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := testkit.Connect(t, db)
		testkit.Exec(t, conn, `CREATE TABLE plain (LIKE audit_log)`)
		for _, profile := range [][]Index{{hot}, full, lean} {
			for n, i := range profile {
				testkit.Exec(t, conn, `CREATE INDEX some_name ON plain `+i.definition())
				r, err := look(t.Context(), conn, "plain")
				require.NoError(t, err)
				require.Equal(t, []present{{Name: "some_name", Definition: i.definition(), Valid: true}}, r.indexes)
				missing, err := Missing(t.Context(), conn, "plain", profile)
				require.NoError(t, err)
				require.Equal(t, append(append([]Index{}, profile[:n]...), profile[n+1:]...), missing)
				testkit.Exec(t, conn, `DROP INDEX some_name`)
			}
		}
	})
}

// TestChoose: an empty audit_log has exactly the indexes of each choice, in any order of choices.
func TestChoose(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := testkit.Connect(t, db)
		p := partition(t, conn, 0)
		for _, c := range append(choices, choices...) {
			require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return Choose(t.Context(), tx, c) }))
			had, err := Chosen(t.Context(), conn)
			require.NoError(t, err)
			require.Equal(t, c, had)
			for _, table := range []string{"audit_log", p} {
				r, err := look(t.Context(), conn, table)
				require.NoError(t, err)
				var definitions, wanted []string
				for _, i := range r.indexes {
					require.True(t, i.Valid)
					if i.Definition != "" {
						definitions = append(definitions, i.Definition)
					}
				}
				for _, i := range c.Parent() {
					wanted = append(wanted, i.definition())
				}
				require.ElementsMatch(t, wanted, definitions, "%s of %s", table, c)
			}
		}
		testkit.Exec(t, conn, `INSERT INTO audit_log (timestamp, action, status) VALUES ('2026-03-05', 'a', 'success')`)
		err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return Choose(t.Context(), tx, choices[0]) })
		require.ErrorIs(t, err, ErrNotEmpty)
	})
}

// TestCopied: the names of a copy's indexes are known, also where Postgres cuts them.
func TestCopied(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := testkit.Connect(t, db)
		for _, table := range []string{"audit_log_2026_03_01", "audit_log_2026_03_of_a_name_as_long_as_a_name_may_be_here"} {
			testkit.Exec(t, conn, `CREATE TABLE `+table+` (LIKE audit_log INCLUDING INDEXES)`)
			r, err := look(t.Context(), conn, table)
			require.NoError(t, err)
			for _, i := range full {
				require.True(t, slices.ContainsFunc(r.indexes, func(p present) bool { return p.is(i) && p.ours(table, i) }), "%s: %s of %v", table, i.copied(table), r.indexes)
			}
		}
	})
}

// TestChooseKeepsNobodyWaiting: where there are rows, Choose says so without waiting for who reads them; where there are none, it waits for a reader for seconds.
func TestChooseKeepsNobodyWaiting(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn, reader := testkit.Connect(t, db), testkit.Connect(t, db)
		partition(t, conn, 0)
		for _, rows := range []int{0, 1} {
			testkit.Exec(t, conn, `INSERT INTO audit_log (timestamp, action, status) SELECT '2026-03-05', 'a', 'success' FROM generate_series(1, $1)`, rows)
			testkit.Exec(t, reader, `BEGIN; SELECT count(*) FROM audit_log`)
			err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
				testkit.Exec(t, conn, `SET LOCAL statement_timeout = '1min'`)
				return Choose(t.Context(), tx, choices[1])
			})
			testkit.Exec(t, reader, `COMMIT`)
			if rows > 0 {
				require.ErrorIs(t, err, ErrNotEmpty)
				continue
			}
			var pg *pgconn.PgError
			require.ErrorAs(t, err, &pg)
			require.Equal(t, "55P03", pg.Code)
		}
	})
}

// TestCreate: a partition gets an index of its own once, whatever an interrupted build left, in audit_log's schema, and never in place of something else.
func TestCreate(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := testkit.Connect(t, db)
		require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return Choose(t.Context(), tx, Choice{Lean, Deferred}) }))
		p := partition(t, conn, 0)
		// Another schema goes first, with a table of the same name.
		testkit.Exec(t, conn, `CREATE SCHEMA other; CREATE TABLE other.`+p+` (id int); SET search_path = other, public`)
		build := func(i Index) bool {
			built, err := Create(t.Context(), conn, p, i)
			require.NoError(t, err)
			return built
		}
		for _, i := range append(full, lean...) {
			missing, err := Missing(t.Context(), conn, p, []Index{i})
			require.NoError(t, err)
			require.Equal(t, len(missing) == 1, build(i), i.X)
			require.False(t, build(i), "there is one now")
			missing, err = Missing(t.Context(), conn, p, []Index{i})
			require.NoError(t, err)
			require.Empty(t, missing)
		}
		require.Equal(t, []string{"audit_log_2026_03_action_idx"}, testkit.Column[string](t, conn, `SELECT c.relname::text FROM pg_class c WHERE c.oid = to_regclass('public.audit_log_2026_03_action_idx')`))
		require.Zero(t, testkit.Column[int64](t, conn, `SELECT count(*) FROM pg_index WHERE NOT indisvalid OR indrelid = 'other.audit_log_2026_03'::regclass`)[0])

		// Left by builds that were ended: one by our name, one by another's (REINDEX CONCURRENTLY makes such), one of our name that is of another definition.
		action, status, hash := full[3], full[4], full[5]
		require.Equal(t, "action", action.X)
		testkit.Exec(t, conn, `SET search_path = public`)
		testkit.Exec(t, conn, `ALTER INDEX audit_log_2026_03_status_idx RENAME TO audit_log_2026_03_status_idx_ccnew;
			DROP INDEX audit_log_2026_03_hash_idx; CREATE INDEX audit_log_2026_03_hash_idx ON audit_log_2026_03 (ttl);
			UPDATE pg_index SET indisvalid = false WHERE indexrelid IN ('audit_log_2026_03_action_idx'::regclass, 'audit_log_2026_03_status_idx_ccnew'::regclass, 'audit_log_2026_03_hash_idx'::regclass)`)
		for _, i := range []Index{action, status, hash} {
			require.True(t, build(i), i.X)
			require.False(t, build(i), i.X)
		}
		require.Zero(t, testkit.Column[int64](t, conn, `SELECT count(*) FROM pg_index WHERE NOT indisvalid`)[0])
		require.Empty(t, testkit.Column[string](t, conn, `SELECT relname::text FROM pg_class WHERE relname LIKE '%ccnew'`))

		// What is a DBA's stays. In another schema it is in nobody's way.
		testkit.Exec(t, conn, `DROP INDEX audit_log_2026_03_action_idx; CREATE INDEX audit_log_2026_03_action_idx ON other.audit_log_2026_03 (id)`)
		require.True(t, build(action))
		for _, other := range []struct{ create, drop string }{
			{`CREATE INDEX audit_log_2026_03_action_idx ON audit_log_2026_03 (ttl)`, `DROP INDEX audit_log_2026_03_action_idx`},
			{`CREATE UNIQUE INDEX audit_log_2026_03_action_idx ON audit_log_2026_03 (action, id, timestamp)`, `DROP INDEX audit_log_2026_03_action_idx`},
			{`CREATE TABLE audit_log_2026_03_action_idx ()`, `DROP TABLE audit_log_2026_03_action_idx`},
		} {
			testkit.Exec(t, conn, `DROP INDEX IF EXISTS audit_log_2026_03_action_idx; `+other.create)
			_, err := Create(t.Context(), conn, p, action)
			var taken *NameTakenError
			require.ErrorAs(t, err, &taken)
			require.Equal(t, `"public"."audit_log_2026_03_action_idx"`, taken.Name)
			testkit.Exec(t, conn, other.drop)
		}
		_, err := Create(t.Context(), conn, "audit_log_2026_04", action)
		require.ErrorIs(t, err, ErrNoTable)
		_, err = Missing(t.Context(), conn, "audit_log_2026_04", full)
		require.ErrorIs(t, err, ErrNoTable)
	})
}

// TestCreateBesideParents: while audit_log's index is there, a partition can have its own of that definition, which stays when that goes.
func TestCreateBesideParents(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := testkit.Connect(t, db)
		p := partition(t, conn, 0)
		missing, err := Missing(t.Context(), conn, p, full)
		require.NoError(t, err)
		require.Equal(t, full, missing)
		for _, i := range full {
			built, err := Create(t.Context(), conn, p, i)
			require.NoError(t, err)
			require.True(t, built)
			testkit.Exec(t, conn, `DROP INDEX `+i.Name("audit_log"))
		}
		r, err := look(t.Context(), conn, p)
		require.NoError(t, err)
		require.Len(t, r.indexes, 1+len(full))
		for _, i := range full {
			require.Contains(t, r.indexes, present{Name: i.Name(p), Definition: i.definition(), Valid: true})
		}
	})
}

// TestNames: no two definitions have one name, since a change from one profile to another builds the new ones while the old ones are there.
func TestNames(t *testing.T) {
	names := map[string]string{}
	for _, i := range slices.Concat([]Index{hot}, full, lean) {
		if had, ok := names[i.X]; ok {
			require.Equal(t, had, i.definition(), i.X)
		}
		names[i.X] = i.definition()
		require.LessOrEqual(t, len("audit_log_2026_03_01_"+i.X+"_inherited_idx"), 63, "a name has 63 bytes")
	}
}

// TestCreateBesideAnother: what somebody is building is invalid until it is done, and not taken for what an interrupted build left.
func TestCreateBesideAnother(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := testkit.Connect(t, db)
		p := partition(t, conn, 0)
		reader, other, own := testkit.Connect(t, db), testkit.Connect(t, db), testkit.Connect(t, db)
		testkit.Exec(t, reader, `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM audit_log`)
		ended := make(chan error, 2)
		go func() {
			_, err := other.Exec(t.Context(), `CREATE INDEX CONCURRENTLY dbas ON audit_log_2026_03 USING btree (action)`)
			ended <- err
		}()
		waiting := func(event string) func() bool {
			return func() bool {
				return testkit.Column[int64](t, conn, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = $1`, event)[0] == 1
			}
		}
		testkit.Eventually(t, patient, "it builds", waiting("virtualxid"))
		go func() {
			built, err := Create(t.Context(), own, p, full[3])
			if err == nil && built {
				err = errors.New("it was built once more")
			}
			ended <- err
		}()
		testkit.Eventually(t, patient, "ours waits", waiting("relation"))
		testkit.Exec(t, reader, `COMMIT`)
		require.NoError(t, <-ended)
		require.NoError(t, <-ended)
		require.Equal(t, []string{"dbas"}, testkit.Column[string](t, conn, `SELECT indexrelid::regclass::text FROM pg_index x JOIN pg_class c ON c.oid = indexrelid
			WHERE indrelid = 'audit_log_2026_03'::regclass AND pg_get_indexdef(indexrelid) LIKE '%(action)' AND NOT c.relispartition`))
	})
}
