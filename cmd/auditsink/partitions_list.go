package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"auditsink/config"
	"auditsink/internal/postgres"
	"auditsink/partitions"
)

func newPartitionsListCommand() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "list",
		Short: "List the partitions with bounds, state, rows and size",
		RunE: func(cmd *cobra.Command, _ []string) error {
			survey, cfg, err := inspectPartitions(cmd)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), append([]partitions.Stat{}, survey.Stats...))
			}
			if err := printPartitions(cmd.OutOrStdout(), survey.Stats); err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), toBuildText(survey.ToBuild(cfg.IndexGrace)))
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newPartitionsStatsCommand() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "stats",
		Short: "Tell everything about the partitions: sizes, events, vacuum, totals, and what should be done",
		Long: "Tell everything about the partitions: sizes, oldest and newest event, dead rows, when they were vacuumed and analyzed, and what should be done.\n" +
			"Rows are estimates of Postgres's; a dash stands for what isn't known, or isn't there.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			survey, cfg, err := inspectPartitions(cmd)
			if err != nil {
				return err
			}
			advice := partitions.Advise(survey, schedule(cfg), cfg.RetentionEnforce)
			report := partitionsStats{
				Partitions: append([]partitions.Stat{}, survey.Stats...), Totals: survey.Totals(), Leader: survey.Leader, NextDrop: survey.NextDrop(),
				ReadyUntil: partitions.ReadyUntil(survey.Now, survey.Catalog.Partitions), Recommendations: append([]partitions.Advice{}, advice...),
			}
			report.ToBuild, report.ToBuildSince = survey.ToBuild(cfg.IndexGrace)
			if asJSON {
				return printJSON(cmd.OutOrStdout(), report)
			}
			return report.print(cmd.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// inspectPartitions looks at the partitions with the settings of the environment.
func inspectPartitions(cmd *cobra.Command) (partitions.Survey, config.Config, error) {
	cfg, pool, err := openPartitions(cmd.Context())
	if err != nil {
		return partitions.Survey{}, cfg, err
	}
	defer pool.Close()
	survey, err := partitions.Inspect(cmd.Context(), pool.Pool, time.Now(), retention(cfg))
	if err != nil {
		return partitions.Survey{}, cfg, postgres.Explain(err)
	}
	return survey, cfg, nil
}

func printPartitions(out io.Writer, stats []partitions.Stat) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PARTITION\tFROM\tTO\tSTATE\tROWS\tSIZE\tGOES\tWHY") //nolint:errcheck // Flush tells
	for _, p := range stats {
		//nolint:errcheck // Flush tells
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, boundText(p, p.From), boundText(p, p.To), p.Phase, rowsText(p.Rows), sizeText(p.TotalBytes),
			goesText(p.Fate), whyText(p.Fate))
	}
	return w.Flush()
}

// partitionsStats is what `partitions stats` tells.
type partitionsStats struct {
	Partitions      []partitions.Stat   `json:"partitions"`
	Totals          partitions.Totals   `json:"totals"`
	ReadyUntil      time.Time           `json:"ready_until"`
	Leader          partitions.Leader   `json:"leader"`
	NextDrop        *partitions.Fate    `json:"next_drop,omitempty"`
	ToBuild         int                 `json:"indexes_to_build"` // deferred ones that are due
	ToBuildSince    time.Time           `json:"indexes_to_build_since,omitzero"`
	Recommendations []partitions.Advice `json:"recommendations"`
}

func (r partitionsStats) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	//nolint:errcheck // Flush tells
	fmt.Fprintln(w, "PARTITION\tFROM\tTO\tSTATE\tROWS\tTABLE\tINDEXES\tOLDEST EVENT\tNEWEST EVENT\tDEAD ROWS\tANALYZED\tVACUUMED\tFROZEN")
	for _, p := range r.Partitions {
		//nolint:errcheck // Flush tells
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", p.Name, boundText(p, p.From), boundText(p, p.To), p.Phase, rowsText(p.Rows),
			sizeText(p.TableBytes), sizeText(p.IndexBytes), timeText(p.Oldest), timeText(p.Newest), p.DeadRows,
			timeText(p.LastAnalyzed), timeText(p.LastVacuumed), timeText(p.FrozenAt))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	leader := "nobody has led yet"
	if r.Leader.Term > 0 {
		leader = fmt.Sprintf("%s leads since %s (term %d)", r.Leader.Holder, timeText(r.Leader.Since), r.Leader.Term)
		if r.Leader.Expired > 0 {
			leader = fmt.Sprintf("nobody leads since %s ago", time.Duration(r.Leader.Expired*float64(time.Second)).Round(time.Second))
		}
	}
	_, err := fmt.Fprintf(out, "\n%d partitions, %d detached; %d rows; tables %s, indexes %s, together %s\nready until %s; %s\n", r.Totals.Partitions, r.Totals.Detached,
		r.Totals.Rows, sizeText(r.Totals.TableBytes), sizeText(r.Totals.IndexBytes), sizeText(r.Totals.TotalBytes), timeText(r.ReadyUntil), leader)
	if r.NextDrop != nil && err == nil {
		_, err = fmt.Fprintf(out, "the first to go is %s: %s\n", r.NextDrop.Name, r.NextDrop.Why)
	}
	if err == nil {
		_, err = fmt.Fprint(out, toBuildText(r.ToBuild, r.ToBuildSince))
	}
	for _, a := range r.Recommendations {
		if err == nil {
			_, err = fmt.Fprintf(out, "%s: %s\n", a.Severity, a)
		}
	}
	return err
}

// toBuildText tells of deferred indexes that are due.
func toBuildText(n int, since time.Time) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("indexes to be built: %d, the first since %s\n", n, timeText(since))
}

// boundText is a bound of a partition.
func boundText(p partitions.Stat, t time.Time) string {
	switch {
	case p.Default:
		return "-"
	case t.IsZero():
		return "unbounded"
	case t.Equal(t.Truncate(24 * time.Hour)):
		return t.UTC().Format(time.DateOnly)
	default:
		return t.UTC().Format(time.RFC3339Nano)
	}
}

// goesText is when a partition goes.
func goesText(f *partitions.Fate) string {
	switch {
	case f == nil:
		return "-"
	case len(f.Holds) > 0:
		return "held"
	case f.Due.IsZero():
		return "never"
	case f.DropAfter.After(f.Due):
		return f.DropAfter.UTC().Format(time.DateOnly)
	default:
		return f.Due.UTC().Format(time.DateOnly)
	}
}

func whyText(f *partitions.Fate) string {
	if f == nil {
		return "-"
	}
	return f.Why
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func rowsText(rows *int64) string {
	if rows == nil {
		return "-"
	}
	return fmt.Sprint(*rows)
}

// sizeText is a size for people.
func sizeText(bytes int64) string {
	value, unit := float64(bytes), 0
	for value >= 1024 && unit < len(sizeUnits)-1 {
		value, unit = value/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", bytes)
	}
	return fmt.Sprintf("%.1f %s", value, sizeUnits[unit])
}

var sizeUnits = []string{"B", "kB", "MB", "GB", "TB", "PB"}
