package partitions

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSummarize: the new pages of partitions that take rows are summarized, of others not; and nothing is waited for.
func TestSummarize(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, url string) {
		db := open(t, url)
		month(t, db, "2025-10-01")
		month(t, db, "2025-11-01")
		month(t, db, "2025-12-01")
		for _, m := range []string{"10", "11", "12"} {
			exec(t, db, `CREATE INDEX brin_`+m+` ON audit_log_2025_`+m+` USING brin (timestamp) WITH (pages_per_range = 1)`)
			exec(t, db, `INSERT INTO audit_log (timestamp, action, status) SELECT '2025-`+m+`-05 00:00+00', 'a', 'success' FROM generate_series(1, 2000)`)
		}
		term := lead(t, db, "me")
		tx := begin(t, db)
		exec(t, tx, `LOCK TABLE audit_log_2025_11 IN SHARE UPDATE EXCLUSIVE MODE`)
		left, err := Summarize(t.Context(), db, term, at("2025-11-20"))
		require.NoError(t, err)
		require.Equal(t, []Care{{Partition: "audit_log_2025_11", Kind: "summarize", Left: "somebody else has it locked"}}, left)
		require.NoError(t, tx.Rollback(t.Context()))
		left, err = Summarize(t.Context(), db, term, at("2025-11-20"))
		require.NoError(t, err)
		require.Empty(t, left)
		for m, open := range map[string]bool{"10": true, "11": false, "12": true} {
			require.Equal(t, open, column[int](t, db, `SELECT brin_summarize_new_values('brin_`+m+`')`)[0] > 0, m)
		}
		lead(t, db, "another")
		_, err = Summarize(t.Context(), db, term, at("2025-11-20"))
		require.ErrorIs(t, err, ErrDeposed)
	})
}
