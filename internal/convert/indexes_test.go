package convert

import (
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/internal/indexes"
	"auditsink/internal/testkit"
)

// TestConvertIndexes: the new table has the indexes that were chosen.
func TestConvertIndexes(t *testing.T) {
	versions(t, func(t *testing.T, db string) {
		conn := old(t, db)
		before := content(t, conn, "audit_log")
		o := options(db)
		o.Indexes = indexes.Choice{Profile: indexes.Lean, Build: indexes.Deferred}
		_, err := Run(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, before, content(t, conn, "audit_log"))
		had, err := indexes.Chosen(t.Context(), conn)
		require.NoError(t, err)
		require.Equal(t, o.Indexes, had)
		require.Equal(t, []string{"audit_log_pkey", "audit_log_timestamp_brin_idx"}, testkit.Column[string](t, conn, `SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'audit_log'::regclass ORDER BY 1`))
		for _, i := range had.Later() {
			built, err := indexes.Create(t.Context(), conn, "audit_log_2014_12", i)
			require.NoError(t, err)
			require.True(t, built)
		}
	})
}
