package convert

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"auditsink/internal/testkit"

	"github.com/stretchr/testify/require"
)

// TestLocks reads from pg_locks what each stage holds on the old table, or waits for: docs/convert.md says the same.
func TestLocks(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		// Two that are in the way for a while, so that locks are waited for, and seen.
		writer, err := testkit.Connect(t, db).Begin(t.Context())
		require.NoError(t, err)
		_, err = writer.Exec(t.Context(), `INSERT INTO audit_log (timestamp, action, status) VALUES (now(), 'x', 'success')`)
		require.NoError(t, err)
		reader, err := testkit.Connect(t, db).Begin(t.Context())
		require.NoError(t, err)

		var stage atomic.Value
		stage.Store("")
		converted := make(chan error, 1)
		var inTheWay sync.Once
		var readerErr error
		go func() {
			o := options(db)
			o.Pause = 5 * time.Millisecond
			o.Report = func(p Progress) {
				if p.Stage == "comparing both tables" {
					inTheWay.Do(func() { _, readerErr = reader.Exec(t.Context(), `SELECT FROM audit_log LIMIT 1`) })
				}
				stage.Store(p.Stage)
			}
			_, err := Run(t.Context(), o)
			stage.Store("")
			converted <- err
		}()
		seen := map[string]map[string]bool{}
		see := func() {
			before := stage.Load()
			modes := testkit.Column[string](t, conn, `SELECT DISTINCT mode FROM pg_locks l JOIN pg_stat_activity a USING (pid)
				WHERE relation = 'audit_log'::regclass AND a.application_name = 'auditsink migrate convert' AND a.datname = current_database()`)
			if at, ok := before.(string); ok && at == stage.Load() && len(modes) > 0 {
				if seen[at] == nil {
					seen[at] = map[string]bool{}
				}
				for _, mode := range modes {
					seen[at][mode] = true
				}
			}
		}
		const strong = "AccessExclusiveLock"
		until := func(enough func() bool) {
			for begun := time.Now(); !enough(); see() {
				require.Less(t, time.Since(begun), 2*time.Minute, "it has come to %q, and %v was seen", stage.Load(), seen)
			}
		}
		until(func() bool { return seen["beginning to note changes"]["ShareRowExclusiveLock"] })
		require.NoError(t, writer.Rollback(t.Context()))
		until(func() bool { return seen["swapping"][strong] })
		require.NoError(t, readerErr)
		require.NoError(t, reader.Rollback(t.Context()))
		require.NoError(t, <-converted)

		// Those of reading come with every other.
		require.Subset(t, []string{"AccessShareLock", "ShareUpdateExclusiveLock", "ShareRowExclusiveLock"}, slices.Collect(maps.Keys(seen["beginning to note changes"])))
		require.Subset(t, []string{"AccessShareLock", "ShareUpdateExclusiveLock", strong}, slices.Collect(maps.Keys(seen["swapping"])))
		for at, modes := range seen {
			if at != "beginning to note changes" && at != "swapping" {
				require.Equal(t, map[string]bool{"AccessShareLock": true}, modes, at)
			}
		}
		require.Contains(t, seen, "copying")
	})
}
