// Launch a command in a scope of its own, with a helper beside it.
//
//	launcher NAME COMMAND [ARGUMENT]...
//
// The command gets the path of the helper's socket in $HELPER, and the name of its scope in $SCOPE. The types, the errors
// and the calls are made from the interface by the generator of github.com/emersion/go-varlink:
//
//	varlinkgen -i io.moorage.Machine.varlink -o moorage/moorage.go
//
// The lease ends the machine with this program. A launcher that is to outlive a restart of the service sends the same call
// again on a new connection, as launcher.c does.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"

	"github.com/emersion/go-varlink"

	"moorage"
)

// wait reads what is known only once the machine is registered, and becomes the command.
const wait = `read -r SCOPE HELPER <&3 && export SCOPE HELPER && exec 3<&- "$@"`

func address() string {
	if path := os.Getenv("MOORAGE_ADDRESS"); path != "" {
		return path
	}
	return "/run/moorage/io.moorage.Machine"
}

func launch(name string, command []string) (int, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	leader := exec.Command("sh", append([]string{"-c", wait, "sh"}, command...)...)
	leader.Stdin, leader.Stdout, leader.Stderr = os.Stdin, os.Stdout, os.Stderr
	leader.ExtraFiles = []*os.File{theirs}
	if err := leader.Start(); err != nil {
		return 0, err
	}
	theirs.Close()
	defer leader.Wait()
	defer ours.Close() // a leader that still waits reads the end of the file, and ends

	connection, err := net.Dial("unix", address())
	if err != nil {
		return 0, err
	}
	moored := moorage.Client{Client: varlink.NewClient(connection)}
	defer moored.Close()

	lease, stop := true, moorage.HelperFailureStopMachine
	reply, err := moored.Register(&moorage.RegisterIn{
		Name:   name,
		Class:  moorage.MachineClassVm,
		Leader: &moorage.ProcessId{Pid: leader.Process.Pid},
		Helpers: &[]moorage.Helper{{
			Name:      "echo",
			ExecStart: []string{"/usr/bin/socat", "ACCEPT-FD:3,fork", "EXEC:cat"},
			Sockets:   &[]moorage.HelperSocket{{Name: "echo.sock"}},
			OnFailure: &stop,
		}},
		Lease: &lease,
	})
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(ours, "%s %s/echo.sock\n", reply.Machine.Unit, *reply.Machine.RuntimeDirectory)

	err = leader.Wait()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		return 0, err
	}
	if status := leader.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return leader.ProcessState.ExitCode(), nil
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "launcher NAME COMMAND [ARGUMENT]...")
		os.Exit(2)
	}
	status, err := launch(os.Args[1], os.Args[2:])
	var exists *moorage.MachineExistsError
	if errors.As(err, &exists) {
		fmt.Fprintf(os.Stderr, "Machine %s exists already, in %s.\n", exists.Name, *exists.Unit)
		os.Exit(1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(status)
}
