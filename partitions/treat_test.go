package partitions

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// TestTreat: begin and end are on the caller's record, in transactions that confirm the term; one that is deposed meanwhile says of nothing that it was done.
func TestTreat(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		pool := open(t, db, "pool_max_conns", "10")
		_, err := Ensure(t.Context(), pool, now, Schedule{Ahead: 0})
		require.NoError(t, err)
		fill(t, pool, "2026-12-05", 100)
		exec(t, pool, `CREATE TABLE notes (note text)`)
		note := func(ctx context.Context, tx pgx.Tx, text string) error {
			_, err := tx.Exec(ctx, `INSERT INTO notes VALUES ($1)`, text)
			return err
		}
		treatment := func(kind string) Treatment {
			return Treatment{
				Partition: "audit_log_2026_12", Kind: kind,
				Begin: func(ctx context.Context, tx pgx.Tx) (bool, error) {
					return kind != "not now", note(ctx, tx, "begun "+kind)
				},
				End: func(ctx context.Context, tx pgx.Tx, left string) error { return note(ctx, tx, "ended "+kind+left) },
			}
		}
		notes := func() []string { return column[string](t, pool, `DELETE FROM notes RETURNING note`) }
		count := func() []int64 {
			return column[int64](t, pool, `SELECT pg_stat_get_vacuum_count(p) + 10 * pg_stat_get_analyze_count(p) FROM (SELECT 'audit_log_2026_12'::regclass::oid AS p) one`)
		}
		term := takeTerm(t, pool, "me")
		for _, kind := range []string{"vacuum", "analyze"} {
			care, err := Treat(t.Context(), pool, term, treatment(kind))
			require.NoError(t, err)
			require.Equal(t, Care{Partition: "audit_log_2026_12", Kind: kind}, care)
			require.Equal(t, []string{"begun " + kind, "ended " + kind}, notes())
		}
		require.Equal(t, []int64{11}, count())
		require.Equal(t, []bool{false}, column[bool](t, pool, `SELECT age(relfrozenxid) = 0 FROM pg_class WHERE relname = 'audit_log_2026_12'`), "nothing is frozen before its time")

		care, err := Treat(t.Context(), pool, term, treatment("not now"))
		require.NoError(t, err)
		require.NotEmpty(t, care.Left)
		notes()
		none := treatment("vacuum")
		none.Partition = "no such table"
		care, err = Treat(t.Context(), pool, term, none)
		require.NoError(t, err)
		require.Equal(t, "it is gone", care.Left)
		require.Equal(t, []string{"begun vacuum", "ended vacuumit is gone"}, notes())
		require.Equal(t, []int64{11}, count())

		// Deposed between begin and end: what it waits for is held until another leads.
		for _, kind := range []string{"vacuum", "analyze"} {
			holder := begin(t, pool)
			exec(t, holder, `LOCK TABLE audit_log_2026_12 IN SHARE UPDATE EXCLUSIVE MODE`)
			failed := make(chan error, 1)
			go func() {
				_, err := Treat(t.Context(), pool, term, treatment(kind))
				failed <- err
			}()
			require.Eventually(t, func() bool { return len(column[string](t, pool, `SELECT note FROM notes`)) == 1 }, testTimeout, time.Millisecond)
			next := takeTerm(t, pool, "you")
			require.NoError(t, holder.Rollback(t.Context()))
			require.ErrorIs(t, <-failed, ErrDeposed, kind)
			require.Equal(t, []string{"begun " + kind}, notes())
			require.ErrorIs(t, func() error { _, err := Treat(t.Context(), pool, term, treatment(kind)); return err }(), ErrDeposed)
			require.Empty(t, notes(), "a leader that was deposed begins nothing")
			term = next
		}
		require.Equal(t, []int64{22}, count(), "what was under way came to its end")
	})
}
