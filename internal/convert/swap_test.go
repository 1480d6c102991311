package convert

import (
	"testing"

	"auditsink/internal/testkit"

	"github.com/stretchr/testify/require"
)

// TestSwapOfTenYears moves 126 partitions, with what was noted. How long that keeps others out is in the log and in docs/performance.md; here it has to work within the
// locks that a server has by default.
func TestSwapOfTenYears(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := testkit.Connect(t, db)
		testkit.Exec(t, conn, replacedSchema+`; INSERT INTO audit_log (timestamp, action, status)
			SELECT date_trunc('month', now()) - make_interval(months => i % 120) + interval '1 hour', 'x', 'success' FROM generate_series(1, 1200) i`)
		noted := false
		o := options(db)
		o.Report = func(p Progress) {
			if p.Stage == "swapping" && !noted {
				noted = true
				testkit.Exec(t, conn, `UPDATE audit_log SET outcome_description = 'changed' WHERE id <= 200; INSERT INTO audit_log (timestamp, action, status) SELECT now(), 'x', 'success' FROM generate_series(1, 200)`)
			}
		}
		s, err := Run(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, []int{126}, testkit.Column[int](t, conn, `SELECT count(*) FROM audit_log_partition_bounds()`))
		require.Equal(t, []int{200}, testkit.Column[int](t, conn, `SELECT count(*) FROM audit_log WHERE outcome_description = 'changed'`))
		t.Logf("%d partitions, 400 changes: %.0f ms", 126, s.LockSeconds*1000)
	})
}
