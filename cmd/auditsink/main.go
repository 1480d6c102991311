// Command auditsink carries audit events from Kafka topics into PostgreSQL.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"auditsink/config"
	"auditsink/internal/devstack"
	"auditsink/internal/kafka"
	"auditsink/internal/postgres"
	"auditsink/migrations"
)

// version is set by the linker.
var version = "dev"

// The exit codes.
const (
	exitFailed   = 1
	exitUsage    = 2 // usage or configuration: it stays until somebody changes something
	exitTampered = 3
)

func main() {
	devstack.MaybeRunChild()
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes a command line and returns its exit code. The first SIGTERM or Ctrl-C asks the command to end; the second kills.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(errs, "auditsink:", err) //nolint:errcheck // there is nowhere else to say it
	return exitCode(err)
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "auditsink",
		Short: "Carry audit events from Kafka into PostgreSQL, each exactly once",
		Long: "auditsink carries audit events from Kafka topics into PostgreSQL, each exactly once.\n" +
			"Settings come from AUDITSINK_ variables: see `auditsink config reference`.\n\n" +
			"Exit codes: 0 fine, 1 failed, 2 usage or configuration, 3 tampering found.",
		Version:           version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.Help(); err != nil {
				return err
			}
			return &usageError{errors.New("which command?")}
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(newRunCommand(), newDevCommand(), newProduceCommand(), newInspectCommand(), newMigrateCommand(),
		newPartitionsCommand(), newLanesCommand(), newQuarantineCommand(), newVerifyCommand(), newQueryCommand(), newStatusCommand(), newConfigCommand(), newVersionCommand())
	for _, c := range allCommands(root) {
		checkArgs(c)
	}
	return root
}

// allCommands lists a command and all below it.
func allCommands(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		all = append(all, allCommands(sub)...)
	}
	return all
}

// checkArgs makes wrong arguments of a command a usage error.
func checkArgs(c *cobra.Command) {
	check := c.Args
	c.Args = func(cmd *cobra.Command, args []string) error {
		if check == nil {
			check = cobra.NoArgs
		}
		if err := check(cmd, args); err != nil {
			return &usageError{fmt.Errorf("%w (see `%s --help`)", err, cmd.CommandPath())}
		}
		return nil
	}
}

// usageError is a wrong command line.
type usageError struct{ error }

// Unwrap gives what was wrong.
func (e *usageError) Unwrap() error { return e.error }

// tamperedError says that stored rows don't prove.
type tamperedError struct{ error }

// exitCode is the process's answer to an error.
func exitCode(err error) int {
	var usage *usageError
	var tampered *tamperedError
	var settings *config.Error
	var table *migrations.TableError
	var schema *migrations.VersionError
	switch {
	case errors.As(err, &tampered):
		return exitTampered
	case errors.As(err, &usage), errors.As(err, &settings), errors.As(err, &table), errors.As(err, &schema),
		errors.Is(err, migrations.ErrNoSchema), kafka.Fatal(err), postgres.Classify(err) == postgres.Fatal:
		return exitUsage
	}
	return exitFailed
}
