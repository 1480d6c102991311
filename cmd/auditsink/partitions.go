package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"auditsink/config"
	"auditsink/internal/postgres"
	"auditsink/migrations"
	"auditsink/partitions"
)

func newPartitionsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "partitions",
		Short: "See, predict and steer what becomes of the table partitions",
		RunE:  needsSubcommand,
	}
	c.AddCommand(newPartitionsListCommand(), newPartitionsStatsCommand(), newPartitionsPlanCommand(), newPartitionsApplyCommand(),
		newPartitionsHoldCommand(), newPartitionsReleaseCommand(), newPartitionsRestoreCommand())
	return c
}

func newPartitionsPlanCommand() *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Tell what maintenance of the table partitions would do now, and change nothing",
		Long: `plan tells which table partitions are missing by AUDITSINK_PARTITION_INTERVAL and AUDITSINK_PARTITION_AHEAD (give it the settings of the workers), and what
else their leader would do. It changes nothing, and a standby can answer it. Exit code 1 where something is in the way of what is missing.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return planPartitions(cmd, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newPartitionsApplyCommand() *cobra.Command {
	asJSON, execute := false, false
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Create the missing table partitions; without --execute only tell which",
		Long: `apply creates the table partitions that are missing by AUDITSINK_PARTITION_INTERVAL and AUDITSINK_PARTITION_AHEAD (give it the settings of the workers), while
events go on being stored. Without --execute it is a dry run and changes nothing. Where something holds a lock it needs, it tries again for two minutes; the
same command can always be given again.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !execute {
				return planPartitions(cmd, asJSON)
			}
			return applyPartitions(cmd, asJSON)
		},
	}
	cmd.Flags().BoolVar(&execute, "execute", false, "do it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// planPartitions prints what would be done.
func planPartitions(cmd *cobra.Command, asJSON bool) error {
	cfg, pool, err := openPartitions(cmd.Context())
	if err != nil {
		return err
	}
	defer pool.Close()
	r, err := lookAtPartitions(cmd.Context(), cfg, pool)
	if err != nil {
		return err
	}
	r.DryRun = true
	return r.print(cmd.OutOrStdout(), asJSON)
}

// applyPartitions creates what is missing, and prints what was created, also where an error ended it, and what is left to the leader.
func applyPartitions(cmd *cobra.Command, asJSON bool) error {
	ctx := cmd.Context()
	cfg, pool, err := openPartitions(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	created, err := partitions.Ensure(ctx, pool.Pool, time.Now(), schedule(cfg))
	if err != nil && !inTheWay(err) {
		if ctx.Err() != nil {
			err = fmt.Errorf("interrupted; the same command does what is left: %w", err)
		}
		r := &partitionsReport{Create: listed(created), Replace: []partitions.Bounds{}, Keep: []partitions.Bounds{}}
		return errors.Join(r.print(cmd.OutOrStdout(), asJSON), postgres.Explain(err))
	}
	r, err := lookAtPartitions(ctx, cfg, pool)
	if err != nil {
		return err
	}
	r.Create = listed(created)
	return r.print(cmd.OutOrStdout(), asJSON)
}

// openPartitions loads the settings and opens the database where maintenance does, and checks that its schema is ours.
func openPartitions(ctx context.Context) (config.Config, *postgres.Pool, error) {
	cfg, err := config.Load(config.Postgres)
	if err != nil {
		return cfg, nil, err
	}
	pool, err := openDatabase(ctx, cfg, maintenanceURL(cfg))
	if err != nil {
		return cfg, nil, err
	}
	if err := migrations.Check(ctx, pool.Pool); err != nil {
		pool.Close()
		return cfg, nil, postgres.Explain(err)
	}
	return cfg, pool, nil
}

// partitionsReport is what plan and apply print.
type partitionsReport struct {
	DryRun     bool                `json:"dry_run"`
	Create     []partitions.Step   `json:"create"`               // or what was created
	Replace    []partitions.Bounds `json:"replace"`              // empty months ahead, in whose place days shall be
	Keep       []partitions.Bounds `json:"keep"`                 // likewise, but with rows
	ReadyUntil time.Time           `json:"ready_until,omitzero"` // as it is now
	Problem    string              `json:"problem,omitempty"`
	problem    error
}

// lookAtPartitions gathers what maintenance would do now. What keeps a partition from being created is part of the report.
func lookAtPartitions(ctx context.Context, cfg config.Config, pool *postgres.Pool) (*partitionsReport, error) {
	look, err := partitions.Look(ctx, pool.Pool, time.Now(), schedule(cfg))
	if err != nil && !inTheWay(err) {
		return nil, postgres.Explain(err)
	}
	r := &partitionsReport{Create: listed(look.Create), Replace: listed(look.Replace), Keep: listed(look.Keep), ReadyUntil: look.ReadyUntil, problem: err}
	if err != nil {
		r.Problem = err.Error()
	}
	return r, nil
}

// inTheWay tells whether an error names what keeps partitions from being created, and nothing else failed.
func inTheWay(err error) bool {
	var taken *partitions.NameTakenError
	var def *partitions.DefaultPartitionError
	return errors.As(err, &taken) || errors.As(err, &def)
}

// listed is never nil, so that JSON says [].
func listed[T any](all []T) []T { return append([]T{}, all...) }

// print writes the report, and returns as an error what is in the way.
func (r *partitionsReport) print(out io.Writer, asJSON bool) error {
	if asJSON {
		return errors.Join(printJSON(out, r), r.problem)
	}
	r.printSchedule(out)
	_, err := fmt.Fprintln(out, r.summary())
	return errors.Join(err, r.problem)
}

// printSchedule writes a line for each partition that comes, or makes place for one that does.
func (r *partitionsReport) printSchedule(out io.Writer) {
	for _, s := range r.Create {
		fmt.Fprintln(out, s) //nolint:errcheck // the last line tells
	}
	for _, b := range r.Replace {
		fmt.Fprintf(out, "the leader removes %s, which is empty: days shall be in its place\n", within(b)) //nolint:errcheck // the last line tells
	}
	for _, b := range r.Keep {
		fmt.Fprintf(out, "%s stays, though days shall be in its place: it holds rows\n", within(b)) //nolint:errcheck // the last line tells
	}
}

// summary is the last line.
func (r *partitionsReport) summary() string {
	text := fmt.Sprintf("%d table partitions created", len(r.Create))
	if r.DryRun {
		text = fmt.Sprintf("dry run, nothing was changed: %d table partitions to create (auditsink partitions apply --execute)", len(r.Create))
	}
	if !r.ReadyUntil.IsZero() {
		text += "; ready until " + r.ReadyUntil.UTC().Format(time.RFC3339)
	}
	return text
}

// within names a partition and its range, for people.
func within(b partitions.Bounds) string {
	return fmt.Sprintf("%s from %s to %s", b.Name, b.From.Format(time.RFC3339), b.To.Format(time.RFC3339))
}
