package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"auditsink/config"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/migrations"
)

func newVerifyCommand() *cobra.Command {
	asJSON, limit := false, 0
	c := &cobra.Command{
		Use:   "verify",
		Short: "Compute the hash of every stored row again, and compare",
		Long: "verify computes the hash of every row of audit_log again from its columns, in parallel, and names the rows where it differs.\n" +
			"Exit code 3 says that there are any.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Postgres)
			if err != nil {
				return err
			}
			ctx, out := cmd.Context(), cmd.OutOrStdout()
			pool, err := openDatabase(ctx, cfg, cfg.PostgresURL)
			if err != nil {
				return err
			}
			defer pool.Close()
			// "0 rows, 0 differ" of a table that isn't ours would be taken for a proof.
			if err := migrations.Check(ctx, pool.Pool); err != nil {
				return postgres.Explain(err)
			}
			named := 0
			begun := time.Now()
			readers := min(runtime.GOMAXPROCS(0), int(cfg.PoolMaxConns))
			total, err := query.Verify(ctx, pool, readers, func(m query.Mismatch) error {
				if named++; limit > 0 && named > limit {
					return nil
				}
				if asJSON {
					return json.NewEncoder(out).Encode(m)
				}
				_, err := fmt.Fprintln(out, describe(m))
				return err
			})
			if err != nil {
				return postgres.Explain(err)
			}
			if asJSON {
				err = json.NewEncoder(out).Encode(total)
			} else {
				_, err = fmt.Fprintf(out, "%d rows verified in %.1f s, %d differ\n", total.Rows, time.Since(begun).Seconds(), total.Mismatches)
			}
			if err != nil {
				return err
			}
			if total.Mismatches > 0 {
				return &tamperedError{fmt.Errorf("%d of %d rows do not prove", total.Mismatches, total.Rows)}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line for each row that differs and one for the total")
	c.Flags().IntVar(&limit, "limit", 1000, "name at most so many rows, 0 for all")
	return c
}

// describe names a row that differs.
func describe(m query.Mismatch) string {
	from := "no lane"
	if m.LaneID != nil && m.LaneOffset != nil {
		from = fmt.Sprintf("lane %d offset %d", *m.LaneID, *m.LaneOffset)
	}
	stored := "none"
	if m.Stored != nil {
		stored = *m.Stored
	}
	return fmt.Sprintf("row %d of %s (timestamp %s, %s): %s differs; stored hash %s, computed %s",
		m.ID, m.TablePartition, m.Timestamp.UTC().Format(time.RFC3339Nano), from, m.Fault, stored, m.Computed)
}
